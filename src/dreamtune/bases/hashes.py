"""SHA-256 of large files, remembered: a base of 7 GB is hashed once, not by every command.

A file counts as unchanged while its size, inode, and times of modification and of status change
(which nothing but a clock can set back) are what they were when it was hashed. A file younger than
`RACY` seconds is not remembered, since it could change again within one tick of the file system's
clock; git calls this racy and does the same.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from dreamtune import fsops
from dreamtune.bases import user
from dreamtune.errors import Resources

FILE = "hashes.json"
RACY = 2.0  # s
MOST = 4096  # entries, above which those of files that are gone are dropped


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    place, facts = str(path.resolve()), _facts(path)
    known = _read().get(place)
    if isinstance(known, dict) and known.keys() == {"facts", "sha256"} and known["facts"] == facts:
        return str(known["sha256"])
    digest = fsops.hash_file(path)
    if facts == _facts(path) and time.time() - max(facts[2:]) / 1e9 > RACY:
        _remember(place, {"facts": facts, "sha256": digest})
    return digest


def _facts(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _read() -> dict[str, Any]:
    return user.read(user.cache_file(FILE))


def _remember(place: str, entry: dict[str, Any]) -> None:
    """Keep a hash; where that cannot be done it is computed again."""
    known = _read() | {place: entry}
    if len(known) > MOST:
        known = {k: v for k, v in known.items() if Path(k).exists()}
    with contextlib.suppress(Resources):
        user.write(user.cache_file(FILE), known)
