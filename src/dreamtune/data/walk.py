"""Finding the photos of a folder: which files are photos, texts, junk, or refused unseen.

Only names and file types are looked at; nothing is opened, and names are data: any bytes that a
file system allows. Relative names use "/" and keep undecodable bytes as surrogates.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

JUNK = {"thumbs.db", "desktop.ini", "__macosx", "icon\r", "@eadir"}
TEXTS = (".txt", ".caption", ".cap", ".json", ".jsonl", ".csv")
STORE = "journal.jsonl"
DEEPEST = 64
BESIDE = (".toml", ".md", ".aae", ".xmp", ".npz", ".safetensors", ".yaml", ".yml", ".parquet")


@dataclass(frozen=True)
class Refused:
    """A file that is set aside: name relative to the folder, code, and words."""

    name: str
    code: str
    detail: str


@dataclass
class Found:
    """Names relative to the folder, each kind sorted; `paths` has those of photos and texts."""

    photos: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    paths: dict[str, Path] = field(default_factory=dict)


def find(folder: Path, follow_links: bool = False) -> Found:
    """Every file below `folder`, in the order of their names, whatever the file system's order."""
    found = Found()
    for entry, name in _entries(folder, "", (), follow_links, found):
        _sort_in(entry, name, folder, follow_links, found)
    for names in (found.photos, found.texts, found.ignored):
        names.sort()
    found.refused.sort(key=lambda refused: refused.name)
    return found


def _entries(
    folder: Path, prefix: str, above: tuple[tuple[int, int], ...], follow: bool, found: Found
) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Files below a folder; `above` holds the folders on the way here, to notice a loop."""
    try:
        facts = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as e:
        found.refused.append(Refused(prefix or ".", "file.unreadable", os.strerror(e.errno or 0)))
        return
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        found.refused.append(Refused(prefix, "file.link", "a link to a folder above it"))
        return
    if len(above) > DEEPEST:
        found.refused.append(Refused(prefix, "file.unreadable", "folders nested too deeply"))
        return
    if above and any(entry.name == STORE for entry in entries):
        found.ignored.append(prefix)  # what dreamtune made here before is not among the photos
        return
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith(".") or entry.name.lower() in JUNK:
            found.ignored.append(name)
        elif _is_folder(entry, follow):
            below = folder / entry.name
            yield from _entries(below, f"{name}/", (*above, here), follow, found)
        else:
            yield entry, name


def _is_folder(entry: os.DirEntry[str], follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:  # a link to itself
        return False


def _sort_in(entry: os.DirEntry[str], name: str, folder: Path, follow: bool, found: Found) -> None:
    path = Path(entry.path)
    refused = _refusal(entry, path, folder, follow)
    ending = path.suffix.lower()
    if ending in BESIDE:
        found.ignored.append(name)
    elif refused:
        found.refused.append(Refused(name, *refused))
    else:
        (found.texts if ending in TEXTS else found.photos).append(name)
        found.paths[name] = path


def _refusal(
    entry: os.DirEntry[str], path: Path, folder: Path, follow: bool
) -> tuple[str, str] | None:
    """Why a file is not even opened."""
    try:
        if (
            entry.is_symlink()
            and not follow
            and not path.resolve().is_relative_to(folder.resolve())
        ):
            return "file.link", "a link out of the folder; see --follow-symlinks"
        mode = entry.stat().st_mode
    except (OSError, RuntimeError) as e:  # RuntimeError: a link that leads to itself
        words = os.strerror(e.errno) if isinstance(e, OSError) and e.errno else "an endless link"
        return "file.unreadable", words
    if stat.S_ISDIR(mode):
        return "file.link", "a link to a folder; see --follow-symlinks"
    return None if stat.S_ISREG(mode) else ("file.special", _special(mode))


def _special(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
