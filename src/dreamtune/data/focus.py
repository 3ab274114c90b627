"""Where the subject is: a box around the part of the heat map that carries the photo's meaning."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FINE = 56  # cells a side on which the box is measured
HOT = 0.18  # share of the way from the median to the peak above which a cell is subject
TAIL = 0.01  # share of the subject's mass that may lie outside on each side
MARGIN = 0.03

Box = tuple[float, float, float, float]


def box(heat: NDArray[np.float32]) -> Box:
    """(h, w) heat -> (x0, y0, x1, y1) as fractions of the photo, 0 <= x0 < x1 <= 1.

    A map without a peak gives the whole photo.
    """
    fine = _smooth(heat)
    floor, peak = float(np.median(fine)), float(fine.max())
    mass = np.clip(fine - (floor + HOT * (peak - floor)), 0, None)
    if peak - floor < 1e-6 or mass.sum() <= 0:
        return 0.0, 0.0, 1.0, 1.0
    x0, x1 = _extent(mass.sum(0))
    y0, y1 = _extent(mass.sum(1))
    return x0, y0, x1, y1


def _smooth(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """The map on a finer grid, bilinear between the centres of its cells."""
    return _stretch(_stretch(heat, FINE).T, FINE).T


def _stretch(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Resample axis 0 to `count` rows."""
    length = len(rows)
    at = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
    below = np.floor(at).astype(np.intp)
    above = np.minimum(below + 1, length - 1)
    share = (at - below).astype(np.float32)[:, None]
    mixed: NDArray[np.float32] = rows[below] * (1 - share) + rows[above] * share
    return mixed


def _extent(mass: NDArray[np.float32]) -> tuple[float, float]:
    """Where the middle of the mass begins and ends, with a margin, as fractions."""
    share = np.cumsum(mass) / mass.sum()
    low = int(np.searchsorted(share, TAIL)) / len(mass)
    high = (int(np.searchsorted(share, 1 - TAIL)) + 1) / len(mass)
    return round(max(0.0, low - MARGIN), 4), round(min(1.0, high + MARGIN), 4)
