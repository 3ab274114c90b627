"""Finding the photos of a folder: what is a photo, what is beside the point, what is refused unseen.

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
SIDECARS = (".txt", ".caption", ".cap", ".json", ".jsonl", ".csv", ".toml", ".md", ".aae", ".xmp")


@dataclass(frozen=True)
class Refused:
    """A file that is set aside: name relative to the folder, code, and words."""

    name: str
    code: str
    detail: str


@dataclass
class Found:
    """photos: names relative to the folder, sorted; ignored: junk and sidecars that were seen."""

    photos: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def find(folder: Path, follow_links: bool = False) -> Found:
    """Every file below `folder`, in the order of their names, whatever the file system's order."""
    found = Found()
    for entry, name in _entries(folder, "", (), follow_links, found):
        _sort_in(entry, name, folder, follow_links, found)
    for names in (found.photos, found.ignored):
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
        found.refused.append(Refused(prefix, "file.unreadable", os.strerror(e.errno or 0)))
        return
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        found.refused.append(Refused(prefix, "file.link", "a link to a folder above it"))
        return
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith(".") or entry.name.lower() in JUNK:
            found.ignored.append(name)
        elif entry.is_dir(follow_symlinks=follow):
            below = folder / entry.name
            yield from _entries(below, f"{name}/", (*above, here), follow, found)
        else:
            yield entry, name


def _sort_in(entry: os.DirEntry[str], name: str, folder: Path, follow: bool, found: Found) -> None:
    ending = os.path.splitext(entry.name)[1].lower()
    if entry.is_symlink() and not follow and not _stays_inside(Path(entry.path), folder):
        refused = Refused(name, "file.link", "a link out of the folder; see --follow-symlinks")
        found.refused.append(refused)
        return
    try:
        mode = entry.stat().st_mode
    except OSError as e:
        found.refused.append(Refused(name, "file.unreadable", os.strerror(e.errno or 0)))
        return
    if stat.S_ISDIR(mode):  # a link to a folder, when links are not followed
        found.refused.append(Refused(name, "file.link", "a link to a folder"))
    elif not stat.S_ISREG(mode):
        found.refused.append(Refused(name, "file.special", _special(mode)))
    elif ending in SIDECARS:
        found.ignored.append(name)
    else:
        found.photos.append(name)


def _stays_inside(link: Path, folder: Path) -> bool:
    try:
        return link.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return True  # a broken or endless link is told as unreadable, not as leading out


def _special(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
