"""Signals as wishes: the work is told, and saves before it ends or goes on.

SIGINT, SIGTERM and SIGHUP (a terminal that closed) ask to save and end, SIGUSR1 to save and go on.
Several processes end at the same step, when the first has been told to.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dreamtune import console, processes

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
    """Collects signals as wishes; the second of one kind ends the process at once, unless there are
    several: what started them passes on what the terminal has sent them already.

    A signal that is ignored from outside, as under nohup, stays so.
    """
    wishes = Wishes()

    def end(number: int, frame: Any) -> None:
        wishes.end = number
        if processes.count() == 1:
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


class Heard:
    """The wishes of the first process, as all of them know them: one step late, since asking for
    them at once would make a GPU wait.
    """

    def __init__(self, wishes: Wishes, accelerator: Any) -> None:
        self.wishes, self.accelerator = wishes, accelerator
        self.asked: Any = None

    def now(self) -> Wishes:
        """To be called by all processes, at the same step."""
        if processes.count() == 1:
            return self.wishes
        import torch

        own = [self.wishes.end, int(self.wishes.save)] if processes.first() else [0, 0]
        before, self.asked = self.asked, torch.tensor(own, device=self.accelerator.device)
        self.asked = self.accelerator.reduce(self.asked)
        end, save = before.tolist() if before is not None else (0, 0)
        return Wishes(end, bool(save))
