"""diffusers' schedulers by the names of `formats.samplers`, for a base's own noise process.

The base's scheduler config is carried over: betas, v-prediction, zero terminal SNR, spacing of the
steps, shift of a flow. What is here are the classes and what A1111's name means beyond them
(the table in diffusers' documentation, api/schedulers/overview).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

from dreamtune.diffusion import Flow
from dreamtune.errors import Usage, suggest
from dreamtune.formats.samplers import Sampler

if TYPE_CHECKING:
    from dreamtune.families import Family


class Lms(LMSDiscreteScheduler):
    """LMS without scipy, which diffusers needs for these integrals only."""

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The integral of a Lagrange basis polynomial over one step, exactly."""
        here = float(self.sigmas[t - current_order])
        others = [float(self.sigmas[t - k]) for k in range(order) if k != current_order]
        basis = np.poly1d(others, r=True) / np.prod([here - other for other in others])
        integral = basis.integ()
        return float(integral(float(self.sigmas[t + 1])) - integral(float(self.sigmas[t])))


SDE = {"algorithm_type": "sde-dpmsolver++"}
DIFFUSION: dict[str, tuple[Any, dict[str, Any]]] = {
    "DDIM": (diffusers.DDIMScheduler, {}),
    "DDPM": (diffusers.DDPMScheduler, {}),
    "PLMS": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "Euler": (diffusers.EulerDiscreteScheduler, {}),
    "Euler a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "Heun": (diffusers.HeunDiscreteScheduler, {}),
    "LMS": (Lms, {}),
    "LCM": (diffusers.LCMScheduler, {}),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}),
    "DPM2": (diffusers.KDPM2DiscreteScheduler, {}),
    "DPM2 a": (diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "DPM++ 2M": (diffusers.DPMSolverMultistepScheduler, {}),
    "DPM++ 2M SDE": (diffusers.DPMSolverMultistepScheduler, SDE),
    "DPM++ 2S": (diffusers.DPMSolverSinglestepScheduler, {}),
    "DPM++ SDE": (diffusers.DPMSolverSinglestepScheduler, SDE),
}
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW: dict[str, tuple[Any, dict[str, Any]]] = {
    "Euler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
    "Heun": (diffusers.FlowMatchHeunDiscreteScheduler, {}),
    "UniPC": (diffusers.UniPCMultistepScheduler, FLOW_SIGMAS),
    "DPM++ 2M": (diffusers.DPMSolverMultistepScheduler, FLOW_SIGMAS),
}


def build(family: Family, sampler: Sampler | None) -> Any:
    """A fresh scheduler for a base; None is the base's own. Usage when it has none of that name."""
    if sampler is None:
        return type(family.scheduler).from_config(family.scheduler.config)
    flow = isinstance(family.process, Flow)
    table = FLOW if flow else DIFFUSION
    if sampler.name not in table:
        raise Usage(
            f"{sampler} does not fit {family.base}",
            why=f"a {'flow' if flow else 'diffusion'} model has {', '.join(table)}",
            fix=suggest(sampler.name, table),
        )
    kind, options = table[sampler.name]
    known = inspect.signature(kind.__init__).parameters
    config = family.scheduler.config
    if config.get("use_dynamic_shifting") and "use_dynamic_shifting" not in known:
        raise Usage(f"{sampler} cannot shift its steps by size, as {family.base} needs")
    if "flow_shift" in known and flow:
        options = {**options, "flow_shift": config.get("shift", 1.0)}
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        options = {**options, "trained_betas": _betas(family.scheduler.alphas_cumprod)}
    if sampler.schedule:
        switch = f"use_{sampler.schedule.lower()}_sigmas"
        if switch not in known:
            raise Usage(f"{sampler.name} has no {sampler.schedule} schedule")
        options = {**options, switch: True}
    return kind.from_config(config, **options)


def set_times(scheduler: Any, family: Family, steps: int, size: tuple[int, int]) -> None:
    """Tell a scheduler how many steps there are, as the family's pipeline does."""
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    extra = {k: v for k, v in family.times(steps, size).items() if k in accepted}
    if scheduler.config.get("use_flow_sigmas"):
        extra.pop("sigmas", None)
    if "sigmas" not in extra:
        extra["num_inference_steps"] = steps
    scheduler.set_timesteps(**extra, device=family.denoiser.device)
    if hasattr(scheduler, "set_begin_index"):
        # Looking the first time up waits for the device, and fails where two steps share a time.
        scheduler.set_begin_index(0)


def _betas(alphas_cumprod: Any) -> list[float]:
    """The betas of a noise schedule; SNR 0 at its end becomes 2^-24, as diffusers' Euler has it."""
    product = alphas_cumprod.double().clamp(min=2**-24).numpy()
    return [float(b) for b in 1 - product / np.concatenate([[1.0], product[:-1]])]
