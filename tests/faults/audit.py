"""What a run does to the world, as the interpreter reports it (sys.addaudithook).

Noted: code that comes from data (pickle, modules and programs outside the installation), programs
that are started, connections, and changes of files where nothing is to be changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dreamtune

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod"}
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"}
NETWORK = {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo",
           "socket.gethostbyname", "urllib.Request", "http.client.connect"}  # fmt: skip
INSTALLED = tuple(
    os.path.realpath(p)
    for p in (sys.prefix, sys.base_prefix, Path(dreamtune.__file__).parent, Path(__file__).parent)
)
HARMLESS = ("/dev/null", "/dev/tty", "/proc/self/", "/dev/shm/")


def install(report: Path, writable: Sequence[Path]) -> None:
    """From now on, each event that should not be is a line of `report`."""
    sys.dont_write_bytecode = True
    log = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    roots = tuple(os.path.realpath(p) for p in writable)
    judging = False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal judging
        judge = JUDGES.get(event)
        if judge is None or judging:
            return
        judging = True
        try:
            if found := judge(args, roots):
                os.write(log, f"{event}: {found} by {_caller()}\n".encode())
        finally:
            judging = False

    sys.addaudithook(hook)


def _caller() -> str:
    """The file that did it, first of all those that are not this one."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _unpickled(args: tuple[Any, ...], roots: tuple[str, ...]) -> str:
    """All but what processes of ours send each other."""
    ours = "/multiprocessing/" in _caller()
    return "" if ours else f"{args[0]}.{args[1]}"


def _code(args: tuple[Any, ...], roots: tuple[str, ...]) -> str:
    """A code object that was compiled from a file outside the installation."""
    name = getattr(args[0], "co_filename", "")
    return _foreign(name)


def _compiled(args: tuple[Any, ...], roots: tuple[str, ...]) -> str:
    return _foreign(args[1])


def _imported(args: tuple[Any, ...], roots: tuple[str, ...]) -> str:
    return _foreign(args[1])


def _library(args: tuple[Any, ...], roots: tuple[str, ...]) -> str:
    """A shared library from where the run reads or writes."""
    name = str(args[0] or "")
    return name if name.startswith(roots) else ""


def _foreign(name: object) -> str:
    path = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
    return path if path.startswith("/") and not path.startswith(INSTALLED) else ""


def _program(args: tuple[Any, ...], roots: tuple[str, ...]) -> str:
    return str(args[0] if args else "")


def _connection(args: tuple[Any, ...], roots: tuple[str, ...]) -> str:
    """All but the sockets between processes of one machine."""
    address = args[-1] if args and hasattr(args[0], "family") else args
    local = args and getattr(args[0], "family", None) == 1  # AF_UNIX
    return "" if local else str(address)


def _written(args: tuple[Any, ...], roots: tuple[str, ...]) -> str:
    path, _, flags = args
    changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    return _outside(path, roots) if flags & changes else ""


def _changed(args: tuple[Any, ...], roots: tuple[str, ...]) -> str:
    paths = [a for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
    if isinstance(args[-1], int) and args[-1] >= 0:  # relative to an open folder
        home = Path(f"/proc/self/fd/{args[-1]}").readlink()
        paths = [home / os.fsdecode(path) for path in paths]  # an absolute path stays as it is
    return next(filter(None, (_outside(p, roots) for p in paths)), "")


def _outside(path: Any, roots: tuple[str, ...]) -> str:
    if isinstance(path, int):  # an open file
        return ""
    full = os.path.realpath(os.fsdecode(path))
    return "" if full.startswith((*roots, *HARMLESS)) else full


JUDGES: dict[str, Callable[[tuple[Any, ...], tuple[str, ...]], str]] = {
    "pickle.find_class": _unpickled,
    "exec": _code,
    "compile": _compiled,
    "import": _imported,
    "ctypes.dlopen": _library,
    "open": _written,
    **dict.fromkeys(CHANGES, _changed),
    **dict.fromkeys(PROGRAMS, _program),
    **dict.fromkeys(NETWORK, _connection),
}
