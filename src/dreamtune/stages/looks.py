"""How pictures are to look, in the terms of the base: sizes, schedulers, what they start from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamtune import console
from dreamtune.errors import Usage
from dreamtune.formats import samplers
from dreamtune.stages.scenes import Scene

if TYPE_CHECKING:
    from dreamtune.data.opened import Opened
    from dreamtune.families import Family
    from dreamtune.sampling import Look
    from dreamtune.sampling.start import Start

ASPECT = 0.01  # by which a picture and its mask may differ


@dataclass(frozen=True)
class Beginning:
    """A picture to start from, and where to change it (white; None is everywhere)."""

    image: Opened
    mask: Opened | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            (w, h), (mask_w, mask_h) = self.image.image.size, self.mask.image.size
            if abs(w * mask_h / (h * mask_w) - 1) > ASPECT:
                raise Usage(f"the mask is {mask_w}x{mask_h} and the picture {w}x{h}")

    def record(self) -> dict[str, str | None]:
        """By hash: nobody need know where the pictures lie."""
        return {"image": self.image.sha256, "mask": self.mask.sha256 if self.mask else None}


def looks_of(
    scenes: Sequence[Scene], family: Family, beginning: Beginning | None
) -> dict[str, Look]:
    """How each file is to look. Usage for sizes that the base cannot make."""
    from dreamtune.sampling import Look

    start_at = functools.cache(functools.partial(_start, beginning))
    found = {}
    for scene in scenes:
        sample = scene.sample
        size = _size(sample.size, family, beginning)
        found[scene.file] = Look(
            steps=sample.steps,
            guidance=sample.guidance,
            size=size,
            negative=sample.negative,
            sampler=samplers.parse(sample.scheduler) if sample.scheduler else None,
            rescale=sample.rescale,
            start=start_at(size),
            strength=sample.strength,
        )
    if family.distilled and any(look.negative for look in found.values()):
        console.warn(f"{family.base} takes no negative prompt")
    return found


def _size(asked: str | None, family: Family, beginning: Beginning | None) -> tuple[int, int]:
    """(width, height) px; Usage when the base can not make it."""
    if asked is None and beginning is not None:
        from dreamtune.data import crops

        choices = crops.buckets(family.resolution, family.multiple, max_aspect=4.0)
        return crops.nearest_bucket(beginning.image.image.size, choices)
    parts = [int(n) for n in (asked or str(family.resolution)).split("x")]
    width, height = parts[0], parts[-1]
    if not width or not height or width % family.multiple or height % family.multiple:
        raise Usage(
            f"size {asked} does not fit the base {family.base}",
            why=f"width and height must be multiples of {family.multiple}",
        )
    return width, height


def _start(beginning: Beginning | None, size: tuple[int, int]) -> Start | None:
    """The picture to start from and its mask, cut from the middle to the size of the result."""
    from PIL import Image, ImageOps

    from dreamtune.sampling.start import Start

    if beginning is None:
        return None
    image = ImageOps.fit(beginning.image.image, size, Image.Resampling.LANCZOS)
    if beginning.mask is None:
        return Start(image)
    return Start(image, ImageOps.fit(beginning.mask.image.convert("L"), size))
