"""Pictures of no object, so that the autoencoder also learns what photographs are made of.

Dead leaves (Lee, Mumford and Huang 2001) and coloured 1/f noise have the edge and power statistics
of natural images; a light from one side is laid over both.
"""

import math
import random

import numpy as np
from PIL import Image, ImageDraw

from tools.mini.compose import light


def texture(size: int, rng: random.Random) -> np.ndarray:
    """(size, size, 3) uint8: dead leaves, 1/f noise, or leaves with noise on them."""
    kind = rng.random()
    if kind < 0.4:
        pixels = dead_leaves(size, rng)
    elif kind < 0.6:
        pixels = pink_noise(size, rng)
    else:
        weight = rng.uniform(0.15, 0.45)
        pixels = (1 - weight) * dead_leaves(size, rng) + weight * pink_noise(size, rng)
    return light(pixels.clip(0, 255).astype(np.uint8), rng)


def dead_leaves(size: int, rng: random.Random) -> np.ndarray:
    """(size, size, 3) fp32 in [0, 255]: discs and rectangles with radii r of density r^-3."""
    scale = 2  # drawn larger and shrunk, for soft edges
    side = scale * size
    canvas = Image.new("RGB", (side, side), _colour(rng))
    pen = ImageDraw.Draw(canvas)
    smallest, largest = side * 0.02, side * rng.uniform(0.2, 0.5)
    for _ in range(rng.randint(60, 240)):
        u = rng.random()
        low, high = smallest**-2, largest**-2
        radius = (low + u * (high - low)) ** -0.5
        x, y = rng.uniform(0, side), rng.uniform(0, side)
        if rng.random() < 0.7:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng))
        else:
            pen.polygon(_rectangle(x, y, radius, rng), fill=_colour(rng))
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32)


def pink_noise(size: int, rng: random.Random) -> np.ndarray:
    """(size, size, 3) fp32 in [0, 255]: amplitude falls as f^-a, a in [0.8, 1.8]; colours agree."""
    noise = np.random.default_rng(rng.getrandbits(32))
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    f[0, 0] = 1
    spectrum = np.fft.rfft2(noise.normal(size=(3, size, size))) * f ** -rng.uniform(0.8, 1.8)
    field = np.fft.irfft2(spectrum, (size, size))
    field = (field - field.mean((1, 2), keepdims=True)) / field.std((1, 2), keepdims=True)
    mixing = 0.85 + 0.35 * noise.normal(size=(3, 3))  # natural colours vary mostly in brightness
    field = np.einsum("cd,dhw->hwc", mixing / 1.5, field)
    middle, contrast = noise.uniform(70, 185, 3), rng.uniform(15, 55)
    return (middle + contrast * field).clip(0, 255).astype(np.float32)


def _colour(rng: random.Random) -> tuple[int, int, int]:
    """Mostly muted: a grey level with some colour cast."""
    grey, cast = rng.uniform(10, 245), rng.uniform(0, 70)
    red, green, blue = (min(255, max(0, round(grey + rng.uniform(-cast, cast)))) for _ in range(3))
    return red, green, blue


def _rectangle(x: float, y: float, radius: float, rng: random.Random) -> list[tuple[float, float]]:
    angle, ratio = rng.uniform(0, math.pi), rng.uniform(0.2, 1)
    c, s = math.cos(angle) * radius, math.sin(angle) * radius
    corners = ((1, ratio), (-1, ratio), (-1, -ratio), (1, -ratio))
    return [(x + c * a - s * b, y + s * a + c * b) for a, b in corners]
