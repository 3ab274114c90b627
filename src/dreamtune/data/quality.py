"""What a picture says without a model: blank, blurred, and the fingerprint of its content.

Everything is computed on small versions, so that a photo of any size costs the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY_SIDE = 256  # long side of the picture that sharpness is measured on
TILE = 32
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (down, across)


@dataclass(frozen=True)
class Quality:
    """flatness:  share of pixels within 4 grey levels of the most common level, 0 to 1
    contrast:    standard deviation of the grey levels, 0 to 127
    sharpness:   see `sharpness`, 0 (nothing but slow gradients) to about 1
    """

    flatness: float
    contrast: float
    sharpness: float


def small(image: Image.Image) -> Image.Image:
    """The grey version, at most GREY_SIDE a side, that everything here is computed on."""
    grey = image.convert("L")
    grey.thumbnail((GREY_SIDE, GREY_SIDE), Image.Resampling.BOX)
    return grey


def measure(grey: Image.Image) -> Quality:
    """Quality of a `small` picture."""
    pixels = np.asarray(grey, np.float32)
    counts = np.bincount(pixels.astype(np.uint8).ravel(), minlength=256)
    near = np.convolve(counts, np.ones(9, np.int64), mode="same").max()
    return Quality(
        flatness=round(float(near) / pixels.size, 4),
        contrast=round(float(pixels.std()), 3),
        sharpness=round(sharpness(pixels), 4),
    )


def sharpness(grey: NDArray[np.float32]) -> float:
    """How much of the local contrast is left at the finest scale, in the busiest tiles.

    A photo with a sharp subject before a soft background is sharp, hence tiles; a dull subject
    can be sharp, hence a ratio: the energy of differences between neighbours over that of
    differences at four pixels' distance. A shaken camera blurs one direction, hence the least of
    four. White noise gives 1, a smooth ramp 1/16, a blur of several pixels about the same.
    """
    if min(grey.shape) <= 4:
        return 0.0
    return min(_sharpness(grey, down, across) for down, across in DIRECTIONS)


def _sharpness(grey: NDArray[np.float32], down: int, across: int) -> float:
    """The ratio in one direction."""
    fine, coarse = _energy(grey, down, across), _energy(grey, 4 * down, 4 * across)
    textured = coarse > 4.0  # tiles of sky and wall have nothing to be sharp about
    if not textured.any():
        return 0.0
    fine, coarse = fine[textured], coarse[textured]
    busiest = np.argsort(-coarse)[: max(4, len(coarse) // 4)]
    return float(np.median(fine[busiest] / coarse[busiest]))


def _energy(grey: NDArray[np.float32], down: int, across: int) -> NDArray[np.float32]:
    """Mean squared difference to the pixel that is (down, across) away, by tile."""
    height, width = (length - 4 for length in grey.shape)
    left = 4 if across < 0 else 0
    here = grey[:height, left : left + width]
    there = grey[down : down + height, left + across : left + across + width]
    squares = (there - here) ** 2
    rows, columns = max(height // TILE, 1), max(width // TILE, 1)
    high, wide = height // rows, width // columns
    tiles = squares[: rows * high, : columns * wide].reshape(rows, high, columns, wide)
    means: NDArray[np.float32] = tiles.mean(axis=(1, 3)).ravel()
    return means


def fingerprint(grey: Image.Image) -> NDArray[np.uint8]:
    """16 x 16 grey levels: what near-duplicates have in common after scaling and recompression."""
    return np.asarray(grey.resize((16, 16), Image.Resampling.BOX), np.uint8)
