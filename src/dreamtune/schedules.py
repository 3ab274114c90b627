"""Courses of the learning rate: an update's number to a factor of the peak rate.

A course is a function of this module; its name is what `--schedule` takes. It maps how much of the
run is done, x in [0, 1), to a factor. `factor` puts a linear warm-up before it.
"""

from __future__ import annotations

import math
import sys


def cosine(x: float, cycles: int) -> float:
    """Half a cosine, from 1 to 0 (Loshchilov & Hutter, arXiv:1608.03983, eq. 5)."""
    return 0.5 * (1 + math.cos(math.pi * x))


def restarts(x: float, cycles: int) -> float:
    """`cycles` half cosines, each from 1 to 0: warm restarts of equal length."""
    return cosine(x * cycles % 1.0, 1)


def linear(x: float, cycles: int) -> float:
    """A straight line from 1 to 0."""
    return 1 - x


def constant(x: float, cycles: int) -> float:
    """1 all the way."""
    return 1.0


def factor(course: str, step: int, steps: int, warmup: int = 0, cycles: int = 1) -> float:
    """Factor of the peak rate at update 0 <= `step` < `steps`; the first `warmup` rise to 1."""
    if step < warmup:
        return (step + 1) / warmup
    shape = getattr(sys.modules[__name__], course)
    return float(shape((step - warmup) / max(1, steps - warmup), cycles))
