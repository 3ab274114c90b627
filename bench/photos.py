"""The photos that are measured with: given ones, or drawn ones where there are none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

USUAL = Path(__file__).parents[2] / "shared" / "data" / "dreambooth" / "dog"
TYPES = {".jpg", ".jpeg", ".png", ".webp"}


def gather(folder: Path, given: Path | None, multiple: int) -> int:
    """Fill `folder` with square JPEGs, a multiple of `multiple` of them; how many.

    Square, so that an aspect bucket gives the same shape as a square crop; a multiple of the batch
    size, so that a trainer that ends each epoch with a short batch does the same work.
    """
    folder.mkdir(parents=True)
    source = given or _usual()
    files = sorted(p for p in source.iterdir() if p.suffix.lower() in TYPES) if source else []
    photos: list[Image.Image] = [Image.open(path) for path in files]
    photos = photos or [_draw(seed) for seed in range(multiple)]
    count = len(photos) // multiple * multiple
    if not count:
        raise SystemExit(f"{source} has {len(photos)} photos, and {multiple} are needed")
    for i, photo in enumerate(photos[:count]):
        upright = ImageOps.exif_transpose(photo).convert("RGB")
        side = min(upright.size)
        ImageOps.fit(upright, (side, side)).save(folder / f"{i:02d}.jpg", quality=95)
    return count


def _usual() -> Path | None:
    asked = os.environ.get("DREAMTUNE_PHOTOS")
    if asked:
        return Path(asked)
    return USUAL if USUAL.is_dir() else None


def _draw(seed: int, side: int = 640) -> Image.Image:
    """A disc on a gradient under noise, so that decoding costs what it does for a photo."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    photo = np.stack([x, y, (x + y) / 2], -1) * rng.uniform(99, 255)
    photo[(x - rng.uniform(0.3, 0.7)) ** 2 + (y - 0.5) ** 2 < 0.06] = rng.uniform(0, 255, 3)
    photo += rng.normal(0, 6, photo.shape)
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8))
