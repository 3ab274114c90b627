"""Captions that lie beside the photos: text files of the same name, and metadata.jsonl or .csv.

What cannot be meant is refused with the file and line that say it; which caption belongs to which
photo is never guessed.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..errors import Unsafe, Usage
from . import texts

ENDINGS = (".txt", ".caption", ".cap", ".json")
TABLES = ("metadata.jsonl", "metadata.csv")
FIELDS = ("text", "caption", "prompt")


def read(
    photos: Sequence[str], files: Sequence[str], paths: Mapping[str, Path], ending: str | None
) -> dict[str, str]:
    """Photo name -> caption, for the photos that have one.

    photos, files: names relative to the folder; ending: only files that end so count.
    Raises Usage for captions that belong to two photos, or a photo with two captions.
    """
    beside = _beside(photos, files, ending)
    captions = {photo: _one(file, paths[file]) for photo, file in beside.items()}
    if ending is None:
        for photo, caption, where in _tables(photos, files, paths):
            if captions.get(photo, caption) != caption:
                fix = "remove one of them"
                raise Usage(f"{photo} has captions in {beside[photo]} and in {where}", fix=fix)
            captions[photo] = caption
    return {photo: caption for photo, caption in captions.items() if caption}


def _beside(photos: Sequence[str], files: Sequence[str], ending: str | None) -> dict[str, str]:
    """Photo -> its caption file."""
    owners: dict[str, list[str]] = defaultdict(list)
    for photo in photos:
        owners[_stem(photo)].append(photo)
    found: dict[str, str] = {}
    for file in files:
        suffix = PurePosixPath(file).suffix.lower()
        wanted = (_dotted(ending),) if ending else ENDINGS
        if suffix not in wanted or PurePosixPath(file).name in TABLES:
            continue
        # "a.jpg.txt" belongs to a.jpg alone, "a.txt" to whichever photo is called a.
        mine = owners.get(_stem(file), []) or [p for p in photos if p == file[: -len(suffix)]]
        if len(mine) > 1:
            raise Usage(f"{file} would be the caption of {_and(mine)}", fix="rename one photo")
        if mine and mine[0] in found:
            both = _and([found[mine[0]], file])
            raise Usage(f"{mine[0]} has two captions, {both}", fix="choose with --caption-ext")
        if mine:
            found[mine[0]] = file
    if ending and not found:
        _explain_none(owners, files, _dotted(ending))
    return found


def _explain_none(owners: Mapping[str, list[str]], files: Sequence[str], ending: str) -> None:
    """`--caption-ext` that finds nothing is an error that names the ending that would."""
    counts: dict[str, int] = defaultdict(int)
    for file in files:
        counts[PurePosixPath(file).suffix.lower()] += _stem(file) in owners
    other = max(counts, key=lambda e: counts[e], default="")
    total = sum(map(len, owners.values()))
    fix = f"use --caption-ext {other}" if counts.get(other) else ""
    why = f"{counts[other]} found with {other}" if fix else ""
    raise Usage(f"0 of {total} captions found with {ending}", why=why, fix=fix)


def _one(name: str, path: Path) -> str:
    """The caption in one file."""
    text = texts.read(path, name)
    if not name.lower().endswith(".json"):
        return texts.clean(text)
    try:
        return texts.clean(_pick(json.loads(text)) or "")
    except (ValueError, RecursionError) as e:
        raise Usage(f"{name} is not valid JSON", why=str(e)) from None


def _tables(
    photos: Sequence[str], files: Sequence[str], paths: Mapping[str, Path]
) -> Iterator[tuple[str, str, str]]:
    """(photo, caption, where) of each row of the metadata files."""
    known = {unicodedata.normalize("NFC", photo): photo for photo in photos}
    for file in files:
        if PurePosixPath(file).name not in TABLES:
            continue
        folder = file[: -len(PurePosixPath(file).name)]
        lines: dict[str, int] = {}
        for line, row in _rows(file, texts.read(paths[file], file)):
            where = f"{file} line {line}"
            name = _file_name(row, where)
            if name in lines:
                raise Usage(f"{where}: {name!r} was already in line {lines[name]}")
            lines[name] = line
            photo = known.get(unicodedata.normalize("NFC", folder + name))
            if photo is None:
                raise Usage(f"{where}: there is no photo {name!r}")
            yield photo, texts.clean(_pick(row) or ""), where


def _rows(file: str, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """(line number, row) of a metadata file."""
    if file.endswith(".csv"):
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as e:
            raise Usage(f"{file} line {reader.line_num}: {e}") from None
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise Usage(f"{file} line {number} is not valid JSON", why=str(e)) from None
        if not isinstance(row, dict):
            raise Usage(f"{file} line {number} is not an object")
        yield number, row


def _file_name(row: Mapping[str, object], where: str) -> str:
    """The photo that a row is about; a name that leaves the folder is refused."""
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise Usage(f"{where}: no file_name")
    parts = re.split(r"[/\\]", name)
    if ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise Unsafe(f"{where}: {name!r} leads out of the folder")
    return "/".join(part for part in parts if part not in ("", "."))


def _pick(row: object) -> str | None:
    """The caption in a JSON object, by the names that trainers use."""
    if isinstance(row, str):
        return row
    values = [row.get(field) for field in FIELDS] if isinstance(row, dict) else []
    return next((value for value in values if isinstance(value, str)), None)


def _stem(name: str) -> str:
    """Without its ending; composed and decomposed accents are one."""
    path = PurePosixPath(name)
    return unicodedata.normalize("NFC", str(path.with_suffix("")))


def _dotted(ending: str) -> str:
    return "." + ending.lower().lstrip(".")


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)
