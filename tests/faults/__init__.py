"""Faults: power cuts, full disks, signals, hostile files; what must hold whatever happens.

`make test` takes a seeded sample of the cases, `make faults` all of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")
EVERYTHING = bool(os.environ.get("DREAMTUNE_FAULTS"))


def some(cases: Iterable[T], count: int, most: int | None = None) -> list[T]:
    """`count` of the cases, the same each time and in order; `most` or all for `make faults`."""
    every = list(cases)
    count = (most or len(every)) if EVERYTHING else count
    if len(every) <= count:
        return every
    chosen = random.Random(0).sample(range(len(every)), count)
    return [every[i] for i in sorted(chosen)]
