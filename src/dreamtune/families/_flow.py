"""What the flow families share: noise levels that shift with the picture's size."""

from __future__ import annotations

from typing import Any, Protocol

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from dreamtune.bases import Base
from dreamtune.bases.overrides import Overrides
from dreamtune.errors import Usage

# The image stream's, and the text stream's.
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
ATTENTION += ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


class FlowFamily(Protocol):
    base: str


def scheduler(base: Base) -> FlowMatchEulerDiscreteScheduler:
    """Euler steps with the shift of a base."""
    return FlowMatchEulerDiscreteScheduler.from_config(base.config("scheduler"))


def refuse_diffusion(family: FlowFamily, said: Overrides) -> None:
    """Usage for overrides that only models of diffusion have."""
    flags = {"--prediction": said.prediction, "--zero-snr": said.zero_snr}
    if given := [flag for flag, value in flags.items() if value is not None]:
        why = "it predicts velocities of a rectified flow"
        raise Usage(f"{given[0]} is not for {family.base}", why=why, fix="leave it out")


def shift_by_size(scheduler: Any, size: tuple[int, int], multiple: int) -> dict[str, float]:
    """`mu` for set_timesteps, for size (w, h) px of patches of `multiple` px; {} when fixed."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return {}
    limits = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    patches = size[0] * size[1] // multiple**2
    return {"mu": calculate_shift(patches, *(config[name] for name in limits))}
