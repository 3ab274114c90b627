"""Datasets laid out for kohya's trainers: folders named `10_sks dog`, and dataset TOML files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Usage

MOST = 10_000  # repeats
_NAMED = re.compile(r"(\d+)_(.*)", re.DOTALL)


@dataclass(frozen=True)
class Subset:
    """repeats: times a photo is shown for once elsewhere; words: "sks dog"; ending: of captions."""

    repeats: int
    words: str
    ending: str | None = None


def subset(folder: str) -> Subset | None:
    """What a folder's name says; None when it is not named this way. Usage for `0_x` and `10_`."""
    named = _NAMED.fullmatch(folder)
    if not named:
        return None
    repeats, words = int(named[1]), named[2].strip()
    if not 1 <= repeats <= MOST:
        raise Usage(f"folder {folder!r}: repeats must be 1 to {MOST:,}")
    if not words:
        raise Usage(f"folder {folder!r} names no class", fix=f"for example '{repeats}_sks dog'")
    return Subset(repeats, words)


def by_folder(photos: Sequence[str], top: str) -> dict[str, Subset]:
    """Photo -> subset, empty when no folder is named kohya's way.

    When one is, all photos must be in such folders: kohya drops the others in silence.
    """
    folders = {photo: photo.rpartition("/")[0].partition("/")[0] or top for photo in photos}
    names = set(folders.values())
    if not any(re.match(r"[1-9]\d*_.", name) for name in names):
        return {}
    subsets = {name: subset(name) for name in sorted(names)}
    others = [name for name, found in subsets.items() if found is None]
    if others:
        listed = ", ".join(repr(name) for name in others)
        example = "as in '10_sks dog'"
        raise Usage(f"folders without a number of repeats: {listed}", fix=f"rename them {example}")
    return {photo: found for photo, name in folders.items() if (found := subsets[name])}


def split(words: str) -> tuple[str, str]:
    """("sks", "dog") of "sks dog": the rare word and the class; ("", "dog") of "dog"."""
    rare, _, rest = words.strip().partition(" ")
    return (rare, rest.strip()) if rest else ("", rare)


@dataclass(frozen=True)
class Source:
    """One image folder of a dataset TOML."""

    folder: Path
    subset: Subset


def sources(tables: Mapping[str, Any], home: Path) -> tuple[list[Source], list[str]]:
    """(image folders, remarks) of a dataset TOML that was read from folder `home`.

    Only what concerns prep is taken: folders, class words, repeats and caption endings.
    """
    found, remarks = [], []
    for settings in _subsets(tables):
        folder = settings.get("image_dir")
        if not isinstance(folder, str) or not folder or "\0" in folder:
            raise Usage("a subset of the dataset TOML has no image_dir")
        if settings.get("is_reg"):
            remarks.append(f"{folder} holds class images and is left out; see dreamtune train")
            continue
        repeats = settings.get("num_repeats", 1)
        if not isinstance(repeats, int) or not 1 <= repeats <= MOST:
            raise Usage(f"{folder}: num_repeats must be 1 to {MOST:,}")
        words = str(settings.get("class_tokens", ""))
        ending = settings.get("caption_extension")
        subset = Subset(repeats, words, ending if isinstance(ending, str) else None)
        found.append(Source(home / folder, subset))
    if not found:
        raise Usage("the dataset TOML names no image folder")
    return found, remarks


def _subsets(tables: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of each subset, with those that its dataset and the file set for all."""
    general = tables.get("general", {})
    for dataset in _list(tables.get("datasets", [])):
        for entry in _list(dataset.get("subsets", [])):
            yield {**_list([general])[0], **dataset, **entry}


def _list(tables: Any) -> list[dict[str, Any]]:
    """A list of tables, as [[name]] makes it."""
    if isinstance(tables, list) and all(isinstance(one, dict) for one in tables):
        return tables
    raise Usage(
        "the dataset TOML is laid out in another way",
        fix="it has a table [general], and in each [[datasets]] some [[datasets.subsets]]",
    )
