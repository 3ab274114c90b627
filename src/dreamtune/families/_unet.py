"""What the UNet families share: noise process, sizes, and what may be said of them otherwise."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler

from dreamtune.bases import Base
from dreamtune.bases.overrides import Overrides
from dreamtune.diffusion import PREDICTIONS, Ddpm
from dreamtune.errors import Usage
from dreamtune.families import _parts
from dreamtune.families._text import TextStack, check_clip_skip, read_stacks
from dreamtune.families._vae import spatial_factor

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
MLP = ["ff.net.0.proj", "ff.net.2"]
# As kohya's LoCon: everything in the blocks.
BLOCKS = ["proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"]
LORA_TARGETS = {
    "attention": ATTENTION,
    "attention+mlp": [*ATTENTION, *MLP],
    "all": [*ATTENTION, *MLP, *BLOCKS],
}


class UnetFamily(Protocol):
    base: str
    text: list[TextStack]
    scheduler: DDIMScheduler
    process: Ddpm
    clip_skip: int


def read(
    base: Base, classes: dict[str, Any], dtype: torch.dtype, device: torch.device | str
) -> tuple[Any, Any, list[TextStack], DDIMScheduler]:
    """UNet, VAE, text encoders and noise schedule of a base."""
    parts = _parts.read(base, classes, dtype, device)
    unet, vae = parts.pop("unet"), parts.pop("vae")
    # DDIM, whatever scheduler the base names. Configs of others lack `clip_sample`, and DDIM's
    # default is for pixels, not latents.
    scheduler = DDIMScheduler.from_config(base.config("scheduler"), clip_sample=False)
    return unet, vae, read_stacks(base, parts), scheduler


def sizes(unet: Any, vae: Any) -> tuple[int, int]:
    """The side that the UNet was trained at, and what sides must be a multiple of, px."""
    factor = spatial_factor(vae)
    levels = len(unet.config.block_out_channels)
    return int(unet.config.sample_size) * factor, factor * 2 ** (levels - 1)


def override(family: UnetFamily, said: Overrides) -> None:
    """Let what is said of a base hold instead of what its files say. Usage for what cannot be."""
    changes: dict[str, Any] = {}
    if said.prediction is not None:
        changes["prediction_type"] = said.prediction
    if said.zero_snr is not None:
        # Steps that leave out the last time would never start from pure noise: arXiv:2305.08891.
        spacing = {"timestep_spacing": "trailing"} if said.zero_snr else {}
        changes |= {"rescale_betas_zero_snr": said.zero_snr, **spacing}
    if changes:
        family.scheduler = DDIMScheduler.from_config(family.scheduler.config, **changes)
        family.process = Ddpm.from_scheduler(family.scheduler)
    family.clip_skip = said.clip_skip or 1
    check_clip_skip(family.base, family.text, family.clip_skip)
    _check_prediction(family)


def _check_prediction(family: UnetFamily) -> None:
    """Usage for what cannot be trained."""
    prediction = family.process.prediction
    if prediction not in PREDICTIONS:
        raise Usage(
            f"{family.base} predicts {prediction!r}",
            why=f"dreamtune trains {' and '.join(PREDICTIONS)}",
            fix="if its scheduler_config.json is wrong, say what holds: --prediction",
        )
    if prediction == "epsilon" and family.scheduler.config.rescale_betas_zero_snr:
        raise Usage(
            f"{family.base} predicts epsilon with zero terminal SNR",
            why="from pure noise there is nothing left to predict (arXiv:2305.08891)",
            fix="add --prediction v_prediction, or --no-zero-snr",
        )
