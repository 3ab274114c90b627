"""gc: what a store can do without. Never an artifact, and nothing that is being written.

Cache entries cost time only, and their files' times say when they were last used. An interrupted
run is somebody's work: it goes when its result is there, or when nobody touched it for long.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamtune import fsops
from dreamtune.artifacts import ASKED, CHECKPOINTS
from dreamtune.errors import Locked
from dreamtune.store import Store

DAY = 86400.0
GIB = 2**30


@dataclass(frozen=True)
class Waste:
    """A file or folder that can go, why, and what that frees."""

    path: Path
    why: str
    bytes: int


def find(store: Store, days: float, cache: float | None) -> Sequence[Waste]:
    """All that can go. cache: GiB that the cache may keep, the last used first."""
    return [*_drafts(store, days), *_cache(store.path / "cache", days, cache)]


def collect(store: Store, waste: Sequence[Waste]) -> Sequence[Waste]:
    """Delete it; what was deleted. A draft that is in use by now stays."""
    gone = []
    for one in waste:
        home = one.path.parent / ".lock"
        with contextlib.suppress(Locked), contextlib.ExitStack() as stack:
            if home.exists():
                stack.enter_context(fsops.lock(home, str(one.path)))
            fsops.remove_tree(one.path)
            gone.append(one)
    return gone


def _drafts(store: Store, days: float) -> Iterator[Waste]:
    """Interrupted jobs whose result is there, or that nobody went on with."""
    finished = {artifact.key for artifact in store.list()}
    for path in store.drafts():
        if fsops.is_locked(path.parent / ".lock"):
            continue
        if _key(path) in finished:
            yield Waste(path, "what it was for is finished", size(path))
        elif (age := _age(path)) > days:
            yield Waste(path, f"interrupted {age:.0f} days ago", size(path))


def _cache(folder: Path, days: float, limit: float | None) -> Iterator[Waste]:
    """Entries not used for long, and the longest unused above the limit."""
    entries = sorted((p for p in folder.rglob("*") if p.is_file()), key=_age)
    kept = 0
    for path in entries:
        age = _age(path)
        part = path.name.startswith(".")  # of an entry that was being written
        kept += size(path)
        if age > (min(days, 1) if part else days):
            yield Waste(path, f"not used for {age:.0f} days", size(path))
        elif limit is not None and kept > limit * GIB and not part:
            yield Waste(path, f"more than {limit:g} GiB of cache", size(path))


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())


def _age(path: Path) -> float:
    """Days since anything in it was last written; never negative, whatever the clock did."""
    newest = max(p.stat().st_mtime for p in [path, *path.rglob("*")])
    return max(0.0, (time.time() - newest) / DAY)


def _key(draft: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((draft / CHECKPOINTS / ASKED).read_bytes())["key"])
    return None
