"""Starting from a picture: image to image, and inpainting where a mask is white.

SDEdit (Meng et al., arXiv:2108.01073): noise is added to the picture up to a share of the steps,
and these steps denoise it. With a mask, what is to stay is put back, equally noisy, after each step
(RePaint without its repetitions, arXiv:2201.09865), and pixel by pixel at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from dreamtune.errors import Usage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from dreamtune.families import Family


@dataclass(frozen=True, eq=False)
class Start:
    """A picture to start from, RGB, and where to change it. Both have the size of the result.

    mask: 8-bit grey; white is made anew, black stays, grey is a blend; None changes everything
    """

    image: Image.Image
    mask: Image.Image | None = None

    def over(self, made: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The made picture (H, W, 3), and the one it started from where the mask is black."""
        if self.mask is None:
            return made
        new = np.asarray(self.mask, np.float32)[..., None] / 255
        return np.rint(new * made + (1 - new) * np.asarray(self.image)).astype(np.uint8)


class Beginning:
    """A start as one base has it: encoded once."""

    def __init__(self, family: Family, start: Start) -> None:
        pixels = torch.from_numpy(np.array(start.image, np.float32)) / 127.5 - 1
        self.mean, self.std = family.encode_image(
            pixels.permute(2, 0, 1)[None].to(family.vae.device)
        )
        self.mask: Tensor | None = None
        if start.mask is not None:
            mask = (torch.from_numpy(np.array(start.mask)) >= 128).float()[None, None]
            self.mask = functional.interpolate(mask, self.mean.shape[-2:]).to(self.mean.device)

    def draw(self, generators: list[torch.Generator], dtype: torch.dtype) -> Tensor:
        """Latents (B, C, h, w) from the posterior, one for each generator."""
        shape = (len(generators), *self.mean.shape[1:])
        noise = randn_tensor(shape, generators, self.mean.device, dtype)
        return (self.mean + self.std * noise).to(dtype)


@dataclass(frozen=True)
class Held:
    """What is to stay of a picture (clean, noise: (B, C, h, w); mask: (1, 1, h, w))."""

    scheduler: Any
    clean: Tensor
    noise: Tensor
    mask: Tensor

    def __call__(self, latents: Tensor, following: Tensor) -> Tensor:
        """`latents`, and outside the mask the picture as noisy as at the next time."""
        kept = self.clean
        if len(following):
            kept = add_noise(self.scheduler, kept, self.noise, following)
        return (1 - self.mask) * kept + self.mask * latents


def last(scheduler: Any, steps: int, strength: float) -> Tensor:
    """The times of the last `strength` of the steps; Usage when that is none."""
    left = min(int(steps * strength), steps)
    if left == 0:
        raise Usage(f"strength {strength:g} of {steps} steps is no step", fix="give more of either")
    first = (steps - left) * getattr(scheduler, "order", 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


def add_noise(scheduler: Any, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Latents (B, C, h, w) as noisy as at time t, (1,), by the scheduler's own rule."""
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(clean, noise, t)
    return scheduler.scale_noise(clean, t, noise)
