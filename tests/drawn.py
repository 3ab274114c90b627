"""Pictures drawn for tests: textured enough to be sharp, each seed a different one."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A scene of coloured shapes over fine texture."""
    rng = np.random.default_rng(seed)
    width, height = size
    ground = rng.integers(60, 200, 3) + rng.normal(0, 25, (height, width, 1))
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(width // 8, width // 2, 2)
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + w, y + h), colour)
    return image


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def clock(seed: int, size: tuple[int, int] = (320, 320)) -> Image.Image:
    """One subject in many places: a wall clock on grounds of several colours."""
    rng = np.random.default_rng(seed)
    image = picture(1000 + seed, (4, 3)).resize(size, Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, (size[1], size[0], 3))
    image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    radius = min(size) * rng.uniform(0.3, 0.4)
    x, y = (length / 2 + rng.uniform(-0.08, 0.08) * length for length in size)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), "#8a5a2b")
    inner = 0.86 * radius
    draw.ellipse((x - inner, y - inner, x + inner, y + inner), "#fdf8ec")
    for hour in range(12):
        angle = hour * np.pi / 6
        marks = [
            coordinate
            for reach in (0.68, 0.8)
            for coordinate in (
                x + np.sin(angle) * radius * reach,
                y - np.cos(angle) * radius * reach,
            )
        ]
        draw.line(marks, "black", max(2, int(radius / 14)))
    for reach, width in ((0.5, 12), (0.7, 20)):
        angle = rng.uniform(0, 2 * np.pi)
        end = (x + np.sin(angle) * radius * reach, y - np.cos(angle) * radius * reach)
        draw.line((x, y, *end), "black", max(2, int(radius / width)))
    return image
