"""Pictures to latents and back. The functions are methods of the families, which have a `vae`."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class HasVae(Protocol):
    vae: Any  # AutoencoderKL


def encode_image(family: HasVae, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior of pixels (B, 3, H, W) in [-1, 1]: mean and std, (B, C, h, w) fp32, scaled."""
    vae = family.vae
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    shift, spread, scale = _statistics(vae, pixels.device)
    mean = (posterior.mean.float() - shift) * scale / spread
    return mean, posterior.std.float() * scale / spread


def decode_image(family: HasVae, latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W), about [-1, 1], of scaled latents (B, C, h, w), in the VAE's precision.

    diffusers' pipelines hand the denoiser's dtype to the VAE, which fails when they differ.
    """
    vae = family.vae
    shift, spread, scale = _statistics(vae, latents.device)
    return vae.decode(latents.to(vae.dtype) * spread / scale + shift, return_dict=False)[0]


def spatial_factor(vae: Any) -> int:
    """Pixels to a latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _statistics(vae: Any, device: torch.device) -> tuple[Any, Any, float]:
    """Mean and spread of raw latents, and the scale that denoisers see; some VAEs' by channel."""
    c = vae.config
    if c.latents_mean is None or c.latents_std is None:
        return c.shift_factor or 0.0, 1.0, c.scaling_factor
    by_channel = (c.latents_mean, c.latents_std)
    mean, std = (torch.tensor(row).view(1, -1, 1, 1).to(device) for row in by_channel)
    return mean, std, c.scaling_factor
