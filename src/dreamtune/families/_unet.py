"""What the UNet families share: noise process, latents, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LORA_TARGETS = {
    "attention": ATTENTION,
    "attention+mlp": [*ATTENTION, "ff.net.0.proj", "ff.net.2"],
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


def parts(folder: Path, classes: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Frozen modules of a diffusers folder, by subfolder name; the VAE stays in fp32."""
    loaded = {}
    for name, kind in classes.items():
        kind_dtype = torch.float32 if name == "vae" else dtype
        module = kind.from_pretrained(
            folder, subfolder=name, torch_dtype=kind_dtype, use_safetensors=True
        )
        loaded[name] = module.eval().requires_grad_(False)
    return loaded
