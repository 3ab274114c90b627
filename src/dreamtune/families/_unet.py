"""What the UNet families share: noise process, latents, sizes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from dreamtune.bases import Base

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
MLP = ["ff.net.0.proj", "ff.net.2"]
# As kohya's LoCon: everything in the blocks.
BLOCKS = ["proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"]
LORA_TARGETS = {
    "attention": ATTENTION,
    "attention+mlp": [*ATTENTION, *MLP],
    "all": [*ATTENTION, *MLP, *BLOCKS],
}


def encode_image(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior of pixels (B, 3, H, W) in [-1, 1]: mean and std, (B, C, h, w) fp32, scaled."""
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
    return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale


def decode_image(vae: Any, latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) of scaled latents (B, C, h, w), in the VAE's own precision.

    diffusers' pipelines hand the denoiser's dtype to the VAE, which fails when they differ.
    """
    latents = latents.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return vae.decode(latents, return_dict=False)[0]


def spatial_factor(vae: Any) -> int:
    """Pixels to a latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def scheduler(base: Base) -> DDIMScheduler:
    """DDIM with the noise schedule of a base, whatever scheduler that names."""
    # Configs of other schedulers lack `clip_sample`, and DDIM's default is for pixels, not latents.
    return DDIMScheduler.from_config(base.config("scheduler"), clip_sample=False)


def parts(
    base: Base, classes: dict[str, Any], dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """Frozen modules of a base, by name of the part; the VAE stays in fp32."""
    return {
        name: base.load(name, kind, torch.float32 if name == "vae" else dtype, device)
        for name, kind in classes.items()
        if name in base.parts
    }
