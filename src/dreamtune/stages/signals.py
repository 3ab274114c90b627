"""Signals as wishes: the work is told, and saves before it ends or goes on.

SIGINT, SIGTERM and SIGHUP (a terminal that closed) ask to save and end, SIGUSR1 to save and go on.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dreamtune import console

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Wishes:
    """What signals have asked for."""

    end: int = 0  # the signal
    save: bool = False

    def __bool__(self) -> bool:
        return bool(self.end or self.save)


@contextlib.contextmanager
def signals() -> Iterator[Wishes]:
    """Collects signals as wishes; the second of one kind ends the process at once.

    A signal that is ignored from outside, as under nohup, stays so.
    """
    wishes = Wishes()

    def end(number: int, frame: Any) -> None:
        wishes.end = number
        console.interject("finishing this step and saving; once more to stop at once")
        signal.signal(number, signal.SIG_DFL)

    def save(number: int, frame: Any) -> None:
        wishes.save = True

    wanted = {**dict.fromkeys(ENDS, end), signal.SIGUSR1: save}
    old = {number: signal.getsignal(number) for number in wanted}
    for number, handler in wanted.items():
        if number == signal.SIGUSR1 or old[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield wishes
    finally:
        for number, before in old.items():
            signal.signal(number, before)
