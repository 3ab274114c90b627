"""Workers that may die: each job runs in a process with a limit on time and memory.

Decoders are C code that reads hostile bytes. Here a crash, a hang or a balloon costs one photo:
its worker is killed and replaced, and the job comes back as a Rejected instead of a result.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from ..errors import Resources, UserError
from .photos import Rejected

Job = TypeVar("Job")
Result = TypeVar("Result")
START_SECONDS = 120.0  # a worker that has not started by then never will
AHEAD = 8  # finished results a worker may be ahead of the slowest one


def run(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    workers: int,
    seconds: float,
    memory: int,
) -> Generator[tuple[Job, Result | Rejected]]:
    """`work(job)` for each job, in order. `work` must be importable; jobs and results pickle.

    seconds: wall-clock time for one job; memory: bytes a worker may allocate beyond its start.
    """
    crew = [_Worker(work, memory) for _ in range(workers)]
    try:
        yield from _steer(crew, enumerate(jobs), seconds)
    finally:
        for worker in crew:
            worker.stop()


def _steer(
    crew: list[_Worker], numbered: Iterator[tuple[int, Any]], seconds: float
) -> Iterator[tuple[Any, Any]]:
    """Keep everybody busy, and hand out results in the order of their jobs."""
    done: dict[int, tuple[Any, Any]] = {}
    following = 0
    left = True
    while True:
        for worker in crew:
            if left and worker.free and len(done) < AHEAD * len(crew):
                job = next(numbered, None)
                left = job is not None
                if job is not None:
                    worker.give(job, seconds)
        busy = [worker for worker in crew if not worker.free]
        if not busy and following not in done:
            return
        for worker in _finished(busy):
            number, job, result = worker.take(seconds)
            if isinstance(result, UserError):  # a full disk is everybody's trouble
                raise result
            done[number] = (job, result)
        while following in done:
            yield done.pop(following)
            following += 1


def _finished(busy: list[_Worker]) -> list[_Worker]:
    """Workers with an answer, or past their time; waits for the first."""
    pause = max(0.0, min((w.deadline for w in busy), default=0.0) - time.monotonic())
    ready = wait([worker.pipe for worker in busy], pause) if busy else []
    now = time.monotonic()
    return [w for w in busy if w.pipe in ready or w.deadline <= now]


class _Worker:
    """One process, its pipe and the job it has."""

    def __init__(self, work: Callable[[Any], Any], memory: int) -> None:
        self.work, self.memory = work, memory
        self.job: tuple[int, Any] | None = None
        self.deadline = 0.0
        self._start()

    @property
    def free(self) -> bool:
        return self.job is None

    def give(self, job: tuple[int, Any], seconds: float) -> None:
        if not self.ready:
            self._greet()
        self.job, self.deadline = job, time.monotonic() + seconds
        self.pipe.send(job[1])

    def take(self, seconds: float) -> tuple[int, Any, Any]:
        """(number, job, result); a dead or late worker is replaced and its job is rejected."""
        assert self.job is not None
        (number, job), self.job = self.job, None
        try:
            if not self.pipe.poll():
                raise TimeoutError
            return number, job, self.pipe.recv()
        except TimeoutError:
            fault = Rejected("image.timeout", f"not decoded within {seconds:g} seconds")
        except (EOFError, OSError):
            self.process.join(5)
            fault = Rejected("image.crash", f"the decoder died ({_death(self.process.exitcode)})")
        self.stop()
        self._start()
        return number, job, fault

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _start(self) -> None:
        # Spawned, not forked: the parent has threads and a large torch in memory.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, self.work, self.memory), daemon=True
        )
        self.process.start()
        theirs.close()
        self.ready = False

    def _greet(self) -> None:
        """Wait for the start; a worker that cannot even start is not the photo's fault."""
        with contextlib.suppress(EOFError, OSError):
            if self.pipe.poll(START_SECONDS) and self.pipe.recv() == "ready":
                self.ready = True
                return
        self.stop()
        raise Resources(
            "the decoding process does not start",
            why=_death(self.process.exitcode),
            fix="run it again when the machine has time and memory, or lower --workers",
        )


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _serve(pipe: Connection, work: Callable[[Any], Any], memory: int) -> None:
    """The worker's side: until the pipe closes, take a job and answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _limit(memory)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send("ready")
        while True:
            pipe.send(_attempt(work, pipe.recv()))


def _attempt(work: Callable[[Any], Any], job: Any) -> Any:
    try:
        return work(job)
    except (Rejected, UserError) as fault:
        return fault
    except MemoryError:
        return Rejected("image.memory", "needs more memory than one photo may take")
    except RecursionError:
        return Rejected("image.damaged", "nested too deeply")
    except Exception as e:  # one photo's surprise is not the folder's
        return Rejected("image.damaged", f"{type(e).__name__}: {e}")


def _limit(memory: int) -> None:
    """No more than `memory` bytes beyond what is mapped now, and no core files."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
