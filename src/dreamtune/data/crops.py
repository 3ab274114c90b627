"""Crops and colours for training: pure geometry and arithmetic, no files and no model.

A crop box is (left, top, right, bottom) in pixels. Every random draw comes from the generator that
is passed in, in a fixed order, so that a sample depends on nothing but its own key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
Focus = Sequence[float]


def buckets(resolution: int, step: int = 64, max_aspect: float = 2.0) -> list[tuple[int, int]]:
    """(width, height) pairs of about resolution ** 2 pixels, both multiples of `step`.

    Sorted by aspect, the square among them, mirrored: (w, h) and (h, w) are both there.
    """
    found = {(resolution // step * step or step,) * 2}
    height = step
    while height <= resolution:
        width = round(resolution * resolution / height / step) * step
        if step <= width <= max_aspect * height:
            found |= {(width, height), (height, width)}
        height += step
    return sorted(found, key=lambda size: (size[0] / size[1], size))


def nearest_bucket(size: tuple[int, int], choices: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect differs least, as a ratio, from that of `size`."""
    aspect = math.log(size[0] / size[1])
    return min(choices, key=lambda c: (abs(math.log(c[0] / c[1]) - aspect), c))


def crop_box(
    size: tuple[int, int],
    focus: Focus,
    target: tuple[int, int],
    rng: np.random.Generator | None = None,
    area: tuple[float, float] = (0.7, 1.0),
) -> Box:
    """A box of the target's aspect that keeps as much of the subject as fits.

    size, target: (width, height) in pixels
    focus:        subject box as fractions (x0, y0, x1, y1) of the photo
    rng:          draws scale and place; None gives the largest box, centred on the subject
    area:         share of the largest such box that a random one covers

    A box that is larger than the subject holds it whole; the random part is where in it.
    """
    largest = _largest(size, target)
    scale = 1.0 if rng is None else math.sqrt(rng.uniform(*area))
    left, width = _span(size[0], largest[0] * scale, focus[0], focus[2], rng)
    top, height = _span(size[1], largest[1] * scale, focus[1], focus[3], rng)
    return left, top, left + width, top + height


def _largest(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float]:
    """Width and height of the largest box of the target's aspect inside the photo."""
    scale = min(size[0] / target[0], size[1] / target[1])
    return target[0] * scale, target[1] * scale


def _span(
    length: int, wanted: float, low: float, high: float, rng: np.random.Generator | None
) -> tuple[int, int]:
    """(start, extent) along one axis: the subject, [low, high] as fractions, stays inside."""
    extent = min(max(round(wanted), 1), length)
    first, last = 0.0, float(length - extent)
    holding = (high * length - extent, low * length)  # starts that keep the whole subject
    if holding[0] <= holding[1]:
        first, last = max(first, min(holding[0], last)), min(last, max(holding[1], first))
    else:  # the subject is larger than the box: stay within it
        first, last = max(first, holding[1]), min(last, holding[0])
    middle = (low + high) / 2 * length - extent / 2
    start = min(max(middle, first), last) if rng is None else rng.uniform(first, max(first, last))
    return min(max(round(start), 0), length - extent), extent


def jitter(
    pixels: NDArray[np.uint8], rng: np.random.Generator, strength: float = 0.2
) -> NDArray[np.uint8]:
    """Brightness, contrast and saturation, each times a draw from [1 - strength, 1 + strength].

    pixels: uint8 (H, W, 3). Strength 0 gives the same pixels. Hue is left alone: it is often what
    makes the subject.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    if strength == 0:
        return pixels
    x = pixels.astype(np.float32) * np.float32(brightness)
    grey = x @ np.array([0.299, 0.587, 0.114], np.float32)
    x = (x - grey.mean()) * np.float32(contrast) + grey.mean()
    grey = (grey - grey.mean()) * np.float32(contrast) + grey.mean()
    x = (x - grey[..., None]) * np.float32(saturation) + grey[..., None]
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
