"""The loop that takes the noise away: predict, guide, step.

It is the loop of the diffusers pipelines over `Family.predict`, so that every family has it once,
and with it what those pipelines have by class only: starting from a picture, and masks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.families import Family

Keep = Callable[["Tensor", "Tensor"], "Tensor"]  # latents, the next time (1,) or none (0,)


def arithmetic(family: Family) -> torch.autocast:
    """Half precision for a denoiser that is in fp32, since it is being trained, in a half base."""
    half, own = family.text[0].encoder.dtype, family.denoiser.dtype
    return torch.autocast(family.denoiser.device.type, half, enabled=own != half)


def denoise(
    family: Family,
    scheduler: Any,
    times: Tensor,
    latents: Tensor,
    cond: dict[str, Tensor],
    *,
    guidance: float | None,
    rescale: float = 0.0,
    generators: list[torch.Generator],
    keep: Keep | None = None,
) -> Tensor:
    """Latents (B, C, h, w) after all `times` of a scheduler that has been told them.

    cond:     what `predict` needs for B pictures; with guidance for 2B, the unguided ones first
    guidance: scale of classifier-free guidance, None for none
    keep:     what is done to the latents after each step
    """
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": generators} if "generator" in accepted else {}
    for i, t in enumerate(times):
        inputs = latents if guidance is None else torch.cat([latents] * 2)
        if hasattr(scheduler, "scale_model_input"):
            inputs = scheduler.scale_model_input(inputs, t)
        predicted = family.predict(inputs, t.expand(len(inputs)), cond)
        if guidance is not None:
            predicted = guide(predicted, guidance, rescale)
        latents = scheduler.step(predicted, t, latents, **options, return_dict=False)[0]
        if keep is not None:
            latents = keep(latents, times[i + 1 : i + 2])
    return latents


def guide(predicted: Tensor, scale: float, rescale: float) -> Tensor:
    """Classifier-free guidance (arXiv:2207.12598, eq. 6) of (2B, …), the unguided half first.

    rescale: share of guidance rescale (arXiv:2305.08891, eq. 15 and 16)
    """
    without, with_text = predicted.chunk(2)
    guided = without + scale * (with_text - without)
    if rescale:
        dims = tuple(range(1, guided.ndim))
        factor = with_text.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        guided = rescale * (guided * factor) + (1 - rescale) * guided
    return guided
