"""The command line in children of one warm process: a run costs its work, not its imports.

A child can be made to die by SIGKILL at its n-th rename into the store, which are the points where
what is on disk changes.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

WARM = ["torch", "accelerate", "peft", "diffusers", "transformers", "dreamtune.cli"]
WARM += ["dreamtune.families.sd", "dreamtune.stages.train", "dreamtune.stages.sample"]


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*WARM, "tests.forked"])
    return context


def start(
    args: list[str],
    folder: Path,
    kill_at: int = 0,
    calls: Path | None = None,
    prepare: Callable[[], object] | None = None,
) -> BaseProcess:
    """`dreamtune *args` in `folder`; stdout and stderr go to files there.

    kill_at: die before the n-th rename (0: never). calls: a file for the number of renames.
    prepare: called in the child before its work.
    """
    process = _context().Process(target=_child, args=(args, folder, kill_at, calls, prepare))
    process.start()
    return process


def run(
    args: list[str],
    folder: Path,
    kill_at: int = 0,
    calls: Path | None = None,
    prepare: Callable[[], object] | None = None,
) -> int:
    """The exit code; -9 for one that was killed."""
    process = start(args, folder, kill_at, calls, prepare)
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def _child(
    args: list[str],
    folder: Path,
    kill_at: int,
    calls: Path | None,
    prepare: Callable[[], object] | None,
) -> None:
    from dreamtune import cli

    os.chdir(folder)
    os.environ["DREAMTUNE_DEBUG"] = "1"
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        # As in a terminal: a shell's background job is started with some of them ignored.
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if kill_at or calls:
        _count_renames(kill_at, calls)
    if prepare:
        prepare()
    os._exit(cli.run(args))


def _count_renames(kill_at: int, calls: Path | None) -> None:
    real, done = os.rename, 0

    def counted(*args: object, **options: object) -> None:
        nonlocal done
        done += 1
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if calls:
            calls.write_text(str(done))
        real(*args, **options)  # type: ignore[arg-type]

    os.rename = os.replace = counted  # type: ignore[assignment]
