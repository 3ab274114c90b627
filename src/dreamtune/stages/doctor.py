"""doctor: what this machine, its libraries and the store are like, and what is wrong with them."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dreamtune import __version__, floors, fsops
from dreamtune.errors import Damaged, Resources, Unsafe, Usage
from dreamtune.stages import gc
from dreamtune.store import Store
from dreamtune.surroundings import thread_count

GIB = 2**30
LOW = 2 * GIB  # free disk below which a run may not find room


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. code: 0 when it is well, else the exit code that it is worth;
    a note is worth knowing and no fault.
    """

    about: str
    said: str
    code: int = 0
    note: bool = False


def look(store: Store) -> Iterator[Finding]:
    """Everything that doctor knows, in the order in which it is shown."""
    yield Finding("dreamtune", __version__)
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield Finding("python", f"{platform.python_version()} on {system}")
    yield from _libraries()
    yield from _devices()
    yield from _disk(store)
    yield from _store(store)
    yield _hub()


def _libraries() -> Iterator[Finding]:
    for library in floors.libraries():
        said = f"{library.found or 'missing'} (needs {library.wanted or 'any'})"
        fault = Unsafe.code if library.reads else Usage.code
        yield Finding(library.name, said, 0 if library.fits else fault)


def _devices() -> Iterator[Finding]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    said = f"{os.cpu_count()} cores, {thread_count()} threads in use, "
    yield Finding(
        "cpu", said + f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    )
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding(f"cuda:{index}", f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
    if not torch.cuda.is_available():
        yield Finding("cuda", f"none that torch {torch.__version__} can use", note=True)


def _disk(store: Store) -> Iterator[Finding]:
    """Room where the store is or will be, and what its file system can do."""
    there = next(p for p in [store.path, *store.path.absolute().parents] if p.is_dir())
    free = shutil.disk_usage(there).free
    few = Resources.code if free < LOW else 0
    yield Finding("disk", f"{free / GIB:.1f} GiB free at {_short(there)}", few)
    if not os.access(there, os.W_OK):
        yield Finding("disk", f"{_short(there)} is read-only", note=True)
        return
    lacking = fsops.lacks(there) if there == store.path else []
    if lacking:
        said = f"cannot {' or '.join(lacking)}: a crash or a second run can do harm"
        yield Finding("file system", said, note=True)


def _store(store: Store) -> Iterator[Finding]:
    if not store.path.is_dir():
        yield Finding("store", f"none at {_short(store.path)} yet", note=True)
        return
    report = store.verify()
    damaged = [path for path, problems in report.items() if problems]
    yield Finding("store", f"{len(report)} artifacts at {_short(store.path)}")
    for path in damaged:
        yield Finding("damaged", f"{_short(path)}: {report[path][0]}", Damaged.code)
    if lines := store.journal.unreadable_lines():
        yield Finding("journal", f"{lines} lines cannot be read and are passed over", note=True)
    for draft in store.drafts():
        state = "under way" if fsops.is_locked(draft.parent / ".lock") else "interrupted"
        said = f"{draft.parent.parent.name} {draft.parent.name} is {state}, {_mib(draft)}"
        yield Finding("run", said, note=True)
    if (store.path / "cache").is_dir():
        yield Finding("cache", f"{_mib(store.path / 'cache')}; `dreamtune gc` removes what is old")


def _hub() -> Finding:
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    token = "a token" if any(os.environ.get(t) for t in ("HF_TOKEN", "HF_TOKEN_PATH")) else ""
    return Finding("hub", ", ".join(filter(None, [_short(home), token, "offline" * offline])))


def _mib(path: Path) -> str:
    return f"{gc.size(path) / 2**20:,.1f} MiB"


def _short(path: Path | str) -> str:
    """A path as it may be shown to others: without the name of the user."""
    home = str(Path.home())
    text = str(path)
    return f"~{text.removeprefix(home)}" if home != "/" and text.startswith(home) else text


def worst(findings: list[Finding]) -> int:
    """The exit code: of the first fault, 0 without one."""
    return next((f.code for f in findings if f.code), 0)
