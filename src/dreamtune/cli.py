"""The command line: assembles commands/, and turns every outcome into a line and an exit code.

Light at import: no torch, no rich. A command's module is light too, and loads its stage when run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__, console, plugins
from .errors import NotFound, Resources, Usage, UserError

ISSUES = "run it again with DREAMTUNE_DEBUG=1 to see where, and please report that"
COMPLETE = "_DREAMTUNE_COMPLETE"  # set by the shell
ORDER = ("prep", "train", "sample")  # the main road first in --help
LESS_MEMORY = {  # what to do about it, by the command
    "train": "--gradient-checkpointing or a smaller --batch or --resolution needs less, and"
    " --resume goes on after the last save",
    "sample": "a smaller --batch or --size needs less",
}


def build(completion: bool = False) -> typer.Typer:
    """The app with every command that commands/ holds."""
    app = typer.Typer(
        name="dreamtune",
        help="Put your own concept into a diffusion model.",
        epilog="Start with: dreamtune prep FOLDER; dreamtune train; dreamtune sample PROMPT",
        add_completion=completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_globals)
    names = plugins.names("dreamtune.commands")
    for name in sorted(names, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n)):
        plugins.load("dreamtune.commands", name).register(app)
    return app


def _version(asked: bool) -> None:
    if asked:
        console.out(f"dreamtune {__version__}")
        raise typer.Exit()


def _globals(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only results, warnings and errors.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="DREAMTUNE_DEBUG", help="Show tracebacks.")
    ] = False,
) -> None:
    console.quiet(quiet)
    if debug:
        os.environ["DREAMTUNE_DEBUG"] = "1"


def main(args: list[str] | None = None) -> None:
    """Entry point of the console script: runs a command and exits with its code."""
    args = sys.argv[1:] if args is None else args
    console.open_streams()
    sys.exit(run(args or ["--help"]))


def run(args: list[str]) -> int:
    """Run a command line; the exit code. Whatever goes wrong is one line on stderr."""
    try:
        _stand()
        _listen()
        completion = args[0].startswith("-") or COMPLETE in os.environ  # it is slow to load
        code = build(completion)(args, prog_name="dreamtune", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UserError as e:
        return _fail(e.code, str(e), args)
    except Ended as e:
        return _fail(128 + e.number, "ended by a signal", args)
    except typer.TyperException as e:  # a flag or command that Typer does not know
        return _fail(2, e.format_message().rstrip("."), args)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(130, "interrupted", args)
    except BrokenPipeError:
        return 141
    except Exception as e:
        return _unexpected(e, args)


class Ended(BaseException):
    """SIGTERM or SIGHUP: what is open is closed on the way out, as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


def _stand() -> None:
    """NotFound when the current folder was removed: paths mean nothing in it."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise NotFound("the current folder is gone", fix="cd to another one") from None


def _listen() -> None:
    """Signals that mean something to a stage mean it where it can act; here they end or wait."""
    import signal
    import threading

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would only disturb the first
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _unexpected(e: Exception, args: list[str]) -> int:
    """A bug, or a machine that ran out of something."""
    if os.environ.get("DREAMTUNE_DEBUG", "") not in ("", "0"):
        import traceback

        console.error("".join(traceback.format_exception(e)))
    if isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError":  # the latter torch's
        command = next((arg for arg in args if not arg.startswith("-")), "")
        fix = LESS_MEMORY.get(command, "free some and run it again")
        return _fail(15, f"out of memory; {fix}", args)
    if isinstance(e, OSError) and (refusal := _of_system(e)):
        return _fail(refusal.code, str(refusal), args)
    first = (str(e).strip() or "no message").splitlines()[0]
    if isinstance(e, RuntimeError) and "CUDA error" in first and "assert" not in first:
        return _fail(15, f"the GPU failed ({first}); --resume goes on after the last save", args)
    return _fail(1, f"internal error ({type(e).__name__}: {first}); {ISSUES}", args)


def _of_system(e: OSError) -> UserError | None:
    """What a system call that failed means to the user; None when it does not say about what."""
    import errno

    out_of = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)
    why, path = e.strerror or "", str(e.filename or "")
    shown = path if len(path) <= 200 else f"{path[:60]}…"
    if e.errno in out_of:
        return Resources(why, why=shown)
    if not path:
        return None
    if e.errno == errno.ENOENT:
        return NotFound(f"{shown} is not there", fix="was it moved or removed meanwhile?")
    if e.errno in (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        return Usage(f"{shown} cannot be used", why=why)
    return Resources(f"cannot use {shown}", why=why)


def _fail(code: int, message: str, args: list[str]) -> int:
    """Say why on stderr; a script that asked for --json gets it on stdout too."""
    for line in message.splitlines():
        console.error(line)
    if "--json" in args:
        console.json({"message_type": "exit_error", "code": code, "message": message})
    return code
