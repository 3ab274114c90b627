"""The kernel's own account of what a child does, through strace: seen, cut off, or refused."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.faults.tape import Op

KINDS = {"write": "write", "pwrite64": "write", "fsync": "fsync", "rename": "rename",
         "mkdir": "mkdir", "unlink": "remove", "unlinkat": "remove", "rmdir": "remove",
         "ftruncate": "truncate"}  # fmt: skip
CALLS = ("chmod", *KINDS)
Changes = Counter[tuple[str, str]]  # kind and path -> how often


@functools.cache
def usable() -> bool:
    """Whether strace is here and may follow a process that is not its child."""
    if not shutil.which("strace"):
        return False
    with subprocess.Popen(["sleep", "9"]) as one:
        command = ["strace", "-qq", "-o", "/dev/null", "-p", str(one.pid)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as other:
            while other.poll() is None and not _tracer(one.pid):
                time.sleep(0.01)
            found = _tracer(one.pid)
            one.kill()
    return bool(found)


def _tracer(pid: int | str) -> int:
    """The process that follows another one; 0 for none."""
    return int(re.findall(r"TracerPid:\t(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


def wait() -> None:
    """In the child: nothing of its work is missed."""
    while not _tracer("self"):
        time.sleep(0.002)


def follow(process: BaseProcess, trace: Path, *options: str) -> int:
    """Follow a child that waits for it to its end; its exit code."""
    show = ["-y", "-e", f"trace={','.join(CALLS)}", "-e", "signal=none"]
    command = ["strace", "-qq", "-o", str(trace), *show, *options, "-p", str(process.pid)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL):
        process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def calls(trace: Path, root: Path) -> list[tuple[str, int, str]]:
    """The changes made below a folder: the call, its number among those of its name, and the path.

    Files that are opened are left out: what that leaves is there when the next change begins.
    """
    found, numbers = [], Counter[str]()
    for line in trace.read_text().splitlines():
        call, _, rest = line.partition("(")
        numbers[call] += 1
        if call not in CALLS:
            continue
        at = re.match(r"(?:\d+|AT_FDCWD)<([^>]*)>", rest)
        names = [] if call in ("write", "pwrite64") else re.findall(r'"([^"]*)"', rest)
        path = Path(at[1] if at else "", *names[:1])
        if path.is_relative_to(root) and " = -1 " not in line:
            found.append((call, numbers[call], os.path.relpath(path, root)))
    return found


def changes(trace: Path, root: Path) -> Changes:
    """What was changed below a folder, as far as a tape says it too."""
    every = calls(trace, root)
    return Counter((KINDS[call], _plain(path)) for call, _, path in every if call in KINDS)


def taped(ops: Iterable[Op]) -> Changes:
    """The same of a tape."""
    every = (("remove" if op[0] in ("unlink", "rmdir") else op[0], op[1]) for op in ops)
    return Counter((kind, _plain(path)) for kind, path in every if kind in KINDS.values())


def _plain(path: str) -> str:
    """Without what only this process could have called it."""
    return re.sub(r"tmp-\w+", "tmp", path)
