"""What the flow families share: a shift of the noise levels that grows with the picture."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.flux.pipeline_flux import calculate_shift


def shift_by_size(scheduler: Any, size: tuple[int, int], multiple: int) -> dict[str, float]:
    """`mu` for set_timesteps, for size (w, h) px of patches of `multiple` px; {} when fixed."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return {}
    limits = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    patches = size[0] * size[1] // multiple**2
    return {"mu": calculate_shift(patches, *(config[name] for name in limits))}
