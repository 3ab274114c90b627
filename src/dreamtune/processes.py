"""Several processes of one run, as torchrun and `accelerate launch` start them.

Each has its share of every batch. The first alone writes, talks and decides; what it has to say to
the others goes through `share`. In a run of one process everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

from .errors import Usage

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # the first may make class images and encode for long


def count() -> int:
    """How many there are."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Which one this is, from 0."""
    return _number("RANK", 0) if count() > 1 else 0


def _number(variable: str, without: int) -> int:
    """What a launcher says; job systems leave such variables behind empty, too."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else without


def first() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


def join(device: str) -> None:
    """Meet the others, to compute on "cpu" or "cuda". Usage when nobody says where they are."""
    if count() > 1:
        missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
        if missing:
            raise Usage(
                f"WORLD_SIZE is {count()} without {', '.join(missing)}",
                fix="start it by `accelerate launch` or torchrun, or unset WORLD_SIZE",
            )
        from accelerate import PartialState

        PartialState(cpu=device == "cpu", timeout=PATIENCE)


def leave() -> None:
    """Part from the others, when all is done."""
    if count() > 1:
        _state().destroy_process_group()


def wait() -> None:
    """Until all have come here."""
    if count() > 1:
        _state().wait_for_everyone()


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """The first does what is inside, and then the others, who find what it has made."""
    if count() == 1:
        yield
        return
    with _state().main_process_first():
        yield


def share(value: T | None) -> T | None:
    """What the first gave, to all."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    box = [value]
    broadcast_object_list(box)
    return box[0]


def _state() -> Any:
    from accelerate import PartialState

    return PartialState()
