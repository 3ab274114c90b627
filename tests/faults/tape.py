"""Every change that a process makes below a folder, seen before and after it is made.

fsops reaches the disk through `os` alone; its functions are replaced here, so that a change can be
written down, counted, refused or be the last thing that the process did. Whether the kernel sees
the same changes is checked against strace (test_kernel.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Op = tuple[Any, ...]  # ("write", path below the folder, offset, data), ("rename", from, to), …
GROWS = {"create", "write", "mkdir"}  # what a full disk refuses


def nothing(op: Op) -> None:
    pass


@contextlib.contextmanager
def watch(
    root: Path, before: Callable[[Op], None] = nothing, after: Callable[[Op], None] = nothing
) -> Iterator[None]:
    """Call `before` ahead of each change below `root` and `after` once it is done.

    What `before` raises, the caller of the system gets. fsync is seen and not done: what it would
    make durable is for the simulated disk to say.
    """
    undo = _patch(Path(os.path.realpath(root)), before, after)
    try:
        yield
    finally:
        undo()


def _patch(root: Path, before: Callable[[Op], None], after: Callable[[Op], None]) -> Any:
    real = {name: getattr(os, name) for name in NAMES}

    def below(path: Any, dir_fd: int | None = None) -> str | None:
        """Where a path or an open file is below the root; None elsewhere."""
        at = _opened(path) if isinstance(path, int) else Path.cwd()
        at = at if dir_fd is None else _opened(dir_fd)
        full = os.path.normpath(at if isinstance(path, int) else at / path)
        inside = full == str(root) or full.startswith(f"{root}/")
        return os.path.relpath(full, root) if inside else None

    def seen(op: Op, call: Callable[[], Any]) -> Any:
        before(op)
        result = call()
        after((*op[:3], op[3][:result]) if op[0] == "write" else op)
        return result

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def call() -> int:
            return int(real["open"](path, flags, mode, dir_fd=dir_fd))

        where = below(path, dir_fd)
        if where is None or not flags & (os.O_CREAT | os.O_TRUNC):
            return call()
        if not os.path.lexists(root / where):
            return int(seen(("create", where), call))
        return int(seen(("truncate", where, 0), call)) if flags & os.O_TRUNC else call()

    def write(fd: int, data: Any) -> int:
        where = below(fd)
        if where is None:
            return int(real["write"](fd, data))
        appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
        offset = os.fstat(fd).st_size if appends else os.lseek(fd, 0, os.SEEK_CUR)
        op = ("write", where, offset, bytes(data))
        return int(seen(op, lambda: real["write"](fd, data)))

    def pwrite(fd: int, data: Any, offset: int) -> int:
        op = ("write", below(fd), offset, bytes(data))
        return int(seen(op, lambda: real["pwrite"](fd, data, offset)))

    def ftruncate(fd: int, size: int) -> None:
        seen(("truncate", below(fd), size), lambda: real["ftruncate"](fd, size))

    def fsync(fd: int) -> None:
        where = below(fd)
        if where is not None:
            seen(("fsync", where), lambda: None)

    def replace(src: Any, dst: Any) -> None:
        a, b = below(src), below(dst)
        assert (a is None) == (b is None), f"{src} is moved across the border to {dst}"
        call = lambda: real["replace"](src, dst)  # noqa: E731
        seen(("rename", a, b), call) if a is not None else call()

    def one(name: str, op: str) -> Callable[..., None]:
        def change(path: Any, *args: Any, dir_fd: int | None = None, **options: Any) -> None:
            where = below(path, dir_fd)
            options |= {} if dir_fd is None else {"dir_fd": dir_fd}

            def call() -> None:
                real[name](path, *args, **options)

            seen((op, where), call) if where is not None else call()

        return change

    ours = {"open": open_, "write": write, "pwrite": pwrite, "ftruncate": ftruncate}
    ours |= {"fsync": fsync, "replace": replace, "rename": replace}
    for name, op in SINGLE.items():
        ours[name] = one(name, op)
    assert ours.keys() == NAMES
    for name, function in ours.items():
        setattr(os, name, function)

    def undo() -> None:
        for name, function in real.items():
            setattr(os, name, function)

    return undo


def _opened(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


SINGLE = {"mkdir": "mkdir", "rmdir": "rmdir", "unlink": "unlink", "remove": "unlink",
          "chmod": "chmod"}  # fmt: skip
NAMES = {"open", "write", "pwrite", "ftruncate", "fsync", "replace", "rename", *SINGLE}


# What can be done about a change. Each is called in a child before its work (forked.run).


def record(root: Path, tape: Path) -> Callable[[Op], None]:
    """Write every change down, for `read`; what is returned writes a mark between them."""
    note = notebook(tape)
    _patch(Path(os.path.realpath(root)), nothing, note)
    return note


def notebook(tape: Path) -> Callable[[Op], None]:
    """What is called with a change or a mark writes it down, for `read`."""
    file = tape.open("wb")

    def note(op: Op) -> None:
        marshal.dump(op, file)
        file.flush()

    return note


def read(tape: Path) -> list[Op]:
    ops = []
    with tape.open("rb") as file, contextlib.suppress(EOFError):
        while True:
            ops.append(marshal.load(file))
    return ops


def kill_at(root: Path, number: int) -> None:
    """Die before the change with this number, counted from 1."""
    die = _counter(number, lambda op: os.kill(os.getpid(), signal.SIGKILL))
    _patch(Path(os.path.realpath(root)), die, nothing)


def fail_at(root: Path, number: int, code: int, for_good: bool = False) -> None:
    """Refuse that change with an error, and with `for_good` all later ones that need space."""
    _patch(Path(os.path.realpath(root)), failing(number, code, for_good), nothing)


def failing(number: int, code: int, for_good: bool = False) -> Callable[[Op], None]:
    def fail(op: Op) -> None:
        raise OSError(code, os.strerror(code), op[1])

    return _counter(number, fail, GROWS if for_good else set())


def _counter(
    number: int, act: Callable[[Op], None], after_too: set[str] | None = None
) -> Callable[[Op], None]:
    count = 0

    def before(op: Op) -> None:
        nonlocal count
        count += 1
        if count == number or (count > number and op[0] in (after_too or set())):
            act(op)

    return before
