"""SIGINT and SIGTERM as wishes: the work is told, and saves before it ends."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from dreamtune import console


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; a second one ends the process at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        console.say("finishing this step and saving; once more to stop at once")
        signal.signal(number, signal.SIG_DFL)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
