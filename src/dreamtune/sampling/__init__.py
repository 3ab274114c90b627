"""Pictures from a base: shots that look alike are made together, each from its own noise.

What is made is what the family's diffusers pipeline makes, bit for bit. A picture's noise depends
on its own seed and on nothing else; how many are made at once changes a pixel by 1/255 at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from dreamtune.errors import NonFinite
from dreamtune.families._vae import spatial_factor
from dreamtune.sampling import schedulers, start
from dreamtune.sampling.denoise import Keep, arithmetic, denoise
from dreamtune.sampling.strength import mixed
from dreamtune.sampling.text import States, Texts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dreamtune.families import Family
    from dreamtune.formats.samplers import Sampler

Variants = tuple[tuple[str, float], ...]  # prompts and their shares: formats.prompts.variants
AT_ONCE, MOST_AT_ONCE = 1 << 21, 16  # pixels and pictures of a batch, unless a number is given
DECODED_AT_ONCE = 1 << 20  # pixels


@dataclass(frozen=True)
class Look:
    """How pictures are made. size is (width, height) in pixels; sampler None is the base's own.

    rescale:  share of guidance rescale, 0 to 1
    start:    a picture to begin with, of that size; strength: the share of the steps that change it
    """

    steps: int
    guidance: float
    size: tuple[int, int]
    negative: str = ""
    sampler: Sampler | None = None
    rescale: float = 0.0
    start: start.Start | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Shot:
    """One picture to make."""

    prompt: Variants
    seed: int
    look: Look


@dataclass(frozen=True)
class _Kind:
    """What shots that are made together have in common."""

    look: Look  # without its negative prompt
    shares: tuple[float, ...]
    chunks: int  # since padding would make one picture depend on the others


def pictures(
    family: Family, prompt: str, seeds: Sequence[int], look: Look, batch: int | None = None
) -> Iterator[Image.Image]:
    """One picture of a prompt for each seed, in order. Errors as `Painter.paint`."""
    shots = [Shot(((prompt, 1.0),), seed, look) for seed in seeds]
    for _, picture in Painter(family).paint(shots, batch):
        yield picture


class Painter:
    """A base with the adapters that are in it now, and what it has encoded."""

    def __init__(self, family: Family) -> None:
        self.family, self.texts = family, Texts(family)
        self._beginnings: dict[start.Start, start.Beginning] = {}

    def paint(
        self, shots: Sequence[Shot], batch: int | None = None
    ) -> Iterator[tuple[Shot, Image.Image]]:
        """Every shot with its picture; those of one kind come together.

        batch: pictures at once; None is as many as their size allows. NonFinite when the model
        gives values that are no picture, Usage for what the base cannot do.
        """
        groups: dict[_Kind, list[Shot]] = {}
        for shot in shots:
            groups.setdefault(self._kind(shot), []).append(shot)
        for kind, alike in groups.items():
            size = batch or fitting(kind.look.size)
            for first in range(0, len(alike), size):
                some = alike[first : first + size]
                yield from zip(some, self._make(kind, some), strict=True)

    def _kind(self, shot: Shot) -> _Kind:
        texts = [*(text for text, _ in shot.prompt), shot.look.negative]
        return _Kind(
            dataclasses.replace(shot.look, negative=""),
            tuple(share for _, share in shot.prompt),
            max(map(self.texts.length, texts)),
        )

    @torch.inference_mode()
    def _make(self, kind: _Kind, shots: Sequence[Shot]) -> list[Image.Image]:
        """The pictures of some shots of one kind."""
        family, look = self.family, kind.look
        cond = self._condition(kind, shots)
        scheduler = schedulers.build(family, look.sampler)
        schedulers.set_times(scheduler, family, look.steps, look.size)
        generators = [torch.Generator().manual_seed(shot.seed) for shot in shots]
        times, latents, keep = self._begin(scheduler, look, generators, cond["text"].dtype)
        with mixed(family, kind.shares), arithmetic(family):
            latents = denoise(
                family,
                scheduler,
                times,
                latents,
                cond,
                guidance=look.guidance if self._guided(look) else None,
                rescale=look.rescale,
                generators=generators,
                keep=keep,
            )
        return self._finish(latents, shots)

    def _condition(self, kind: _Kind, shots: Sequence[Shot]) -> States:
        """What `predict` needs; with guidance, of the negative prompts first."""
        states = [self._states(shot.prompt, kind.chunks) for shot in shots]
        if self._guided(kind.look):
            states = [*(self._unguided(kind, shot) for shot in shots), *states]
        text = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        width, height = kind.look.size
        meta = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        device = text["text"].device
        cond = self.family.condition(text, meta.expand(len(states), -1).to(device))
        if self.family.distilled:
            scale = torch.full((len(states),), kind.look.guidance, device=device)
            cond = {**cond, "guidance": scale}
        return cond

    def _guided(self, look: Look) -> bool:
        """Whether there is classifier-free guidance, and so a use for the negative prompt."""
        return look.guidance > 1 and not self.family.distilled

    def _unguided(self, kind: _Kind, shot: Shot) -> States:
        """Of the negative prompt. SDXL was trained with zeros where there is none."""
        negative = shot.look.negative
        states = self._states(tuple((negative, share) for share in kind.shares), kind.chunks)
        if negative or not self.family.zeros_for_no_text:
            return states
        return {name: torch.zeros_like(state) for name, state in states.items()}

    def _states(self, prompt: Variants, chunks: int) -> States:
        """One row: the variants' words behind one another, all else mixed by their shares."""
        states = [self.texts.states(text, chunks) for text, _ in prompt]
        if len(states) == 1:
            return states[0]
        pairs = [(share, state) for (_, share), state in zip(prompt, states, strict=True)]
        row = {
            name: torch.stack([w * s[name] for w, s in pairs]).sum(0)
            for name in states[0]
            if name != "text"
        }
        return {**row, "text": torch.cat([state["text"] for state in states], dim=1)}

    def _begin(
        self, scheduler: Any, look: Look, generators: list[torch.Generator], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Keep | None]:
        """Times, latents (B, C, h, w) at the first of them, and what is to stay as it is."""
        vae, device = self.family.vae, self.family.denoiser.device
        width, height = (side // spatial_factor(vae) for side in look.size)
        shape = (len(generators), vae.config.latent_channels, height, width)
        if look.start is None:
            noise = randn_tensor(shape, generators, device, dtype)
            return scheduler.timesteps, noise * getattr(scheduler, "init_noise_sigma", 1.0), None
        if look.start not in self._beginnings:
            self._beginnings[look.start] = start.Beginning(self.family, look.start)
        beginning = self._beginnings[look.start]
        # In this order, as the pipelines that start from a picture draw.
        clean = beginning.draw(generators, dtype)
        noise = randn_tensor(shape, generators, device, dtype)
        times = start.last(scheduler, look.steps, look.strength)
        mask = beginning.mask
        keep = None if mask is None else start.Held(scheduler, clean, noise, mask.to(dtype))
        return times, start.add_noise(scheduler, clean, noise, times[:1]), keep

    def _finish(self, latents: Tensor, shots: Sequence[Shot]) -> list[Image.Image]:
        """Decoded pictures, a few at once: the autoencoder needs more memory than the denoiser."""
        size = shots[0].look.size
        at_once = max(1, DECODED_AT_ONCE // (size[0] * size[1]))
        made = []
        for first in range(0, len(shots), at_once):
            pixels = self.family.decode_image(latents[first : first + at_once])
            pixels = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
            some = shots[first : first + at_once]
            made += [_picture(p, s) for p, s in zip(pixels.cpu().numpy(), some, strict=True)]
        return made


def fitting(size: tuple[int, int]) -> int:
    """How many pictures of (width, height) pixels are made at once when nobody says."""
    return min(max(AT_ONCE // (size[0] * size[1]), 1), MOST_AT_ONCE)


def _picture(pixels: NDArray[np.float32], shot: Shot) -> Image.Image:
    """pixels: (H, W, 3) in [0, 1]; NonFinite when there is nothing in them."""
    if pixels.min() == pixels.max() or np.isnan(pixels).any():
        raise NonFinite(
            f"the picture with seed {shot.seed} is empty",
            why="the model gave values that are not finite",
            fix="try --precision fp32, or another adapter",
        )
    made = (pixels * 255).round().astype(np.uint8)
    return Image.fromarray(shot.look.start.over(made) if shot.look.start else made)
