"""The kinds of base that there are within families, as tiny models."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dreamtune import bases, families
from dreamtune.bases.overrides import Overrides, override
from dreamtune.families import Family, flux, sd3, sdxl


def said(name: str, **overrides: object) -> Family:
    """A tiny base of which something is said that its files do not say."""
    return families.load(override(bases.find(name), Overrides(**overrides)), torch.float32)  # type: ignore[arg-type]


def _encodes_no_text() -> Family:
    family = sdxl.Family.tiny()
    family.zeros_for_no_text = False
    return family


def _by_channel() -> Family:
    """SDXL's latents are centred and scaled by channel in some bases."""
    family = sdxl.Family.tiny()
    family.vae.register_to_config(
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.3, 0.7]
    )
    return family


VARIANTS: dict[str, Callable[[], Family]] = {
    "sd": lambda: said("tiny:sd"),
    "sd, v": lambda: said("tiny:sd", prediction="v_prediction"),
    "sd, v, zero SNR": lambda: said("tiny:sd", prediction="v_prediction", zero_snr=True),
    "sdxl": lambda: said("tiny:sdxl"),
    "sdxl, no text is encoded": _encodes_no_text,
    "sdxl, latents by channel": _by_channel,
    "sd3": lambda: said("tiny:sd3"),
    "sd3 without T5": lambda: sd3.Family.tiny("text_encoder_3"),
    "flux dev": lambda: said("tiny:flux"),
    "flux schnell": lambda: flux.Family.tiny(guided=False),
}
