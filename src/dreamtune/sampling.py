"""Pictures from a base: encoded prompts through the family's own diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from dreamtune.errors import NonFinite

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.families import Family


@dataclass(frozen=True)
class Look:
    """How pictures are made. size is (width, height) in pixels."""

    steps: int
    guidance: float
    size: tuple[int, int]
    negative: str = ""


def encode_prompt(family: Family, prompt: str) -> dict[str, Tensor]:
    """Text states (1, ...) of one prompt."""
    device = family.denoiser.device
    tokens = {stack.name: stack.tokenize([prompt]).to(device) for stack in family.text}
    return family.encode_text(tokens)


def arithmetic(family: Family) -> torch.autocast:
    """Half precision for a denoiser that is in fp32, since it is being trained, in a half base."""
    half, own = family.text[0].encoder.dtype, family.denoiser.dtype
    return torch.autocast(family.denoiser.device.type, half, enabled=own != half)


@torch.inference_mode()
def pictures(
    family: Family, prompt: str, seeds: Sequence[int], look: Look, batch: int
) -> Iterator[Image.Image]:
    """One picture per seed. Its starting noise depends on that seed and on nothing else.

    NonFinite when the model gives values that are no picture.
    """
    pipeline = family.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    text = encode_prompt(family, prompt)
    arguments = family.prompt_arguments(text, encode_prompt(family, look.negative))
    width, height = look.size
    for start in range(0, len(seeds), batch):
        some = seeds[start : start + batch]
        with arithmetic(family):
            latents = pipeline(
                **{name: rows.repeat_interleave(len(some), 0) for name, rows in arguments.items()},
                num_inference_steps=look.steps,
                guidance_scale=look.guidance,
                width=width,
                height=height,
                generator=[torch.Generator().manual_seed(seed) for seed in some],
                output_type="latent",
            ).images
        pixels = family.decode_image(family.pipeline_latents(latents, look.size))
        arrays = pipeline.image_processor.postprocess(pixels, output_type="np")
        for seed, array in zip(some, arrays, strict=True):
            if array.min() == array.max() or array.min() != array.min():
                raise NonFinite(
                    f"the picture with seed {seed} is empty",
                    why="the model gave values that are not finite",
                    fix="try --precision fp32, or another adapter",
                )
            yield Image.fromarray((array * 255).round().astype("uint8"))
