"""Noise processes: how a clean latent becomes a noisy one, and what a model is asked to predict.

A draw is one number u in [0, 1) whatever the family: `Times` turns it into a noise level, a process
turns the level into the time that its model is given. x0, noise, xt and target have shape
(B, C, h, w); u, level and t have shape (B,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from dreamtune.errors import Usage

PREDICTIONS = ("epsilon", "v_prediction")


class Process(Protocol):
    times: Times

    def timesteps(self, u: Tensor, size: tuple[int, int]) -> Tensor:
        """Uniform u to the times of latents of `size` (h, w)."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def to(self, device: torch.device | str) -> Process: ...
    def tuned(self, times: Times, shift: float | None) -> Process:
        """With other times and, unless None, another shift; Usage where there is no shift."""

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of xt = alpha x0 + sigma noise, (B, 1, 1, 1) in `like`'s dtype."""

    def clean(self, xt: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The x0 that a prediction stands for."""


@dataclass(frozen=True)
class Times:
    """Which noise levels are trained how often, as quantile functions (Esser et al.,
    arXiv:2403.03206, section 3.1; there t is our level: 0 is the picture, 1 is noise).

    density: "uniform"; "logit-normal" with `mean` and `std`, where a positive mean prefers noise;
    "mode" with `scale`; "cosmap". diffusers' scripts read their draw the other way around, so that
    a positive mean prefers the picture there; the other densities are symmetric.
    """

    density: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29

    def level(self, u: Tensor) -> Tensor:
        """Uniform u in [0, 1) to noise levels in [0, 1), increasing, fp32."""
        u = u.double()
        if self.density == "logit-normal":  # eq. 19
            u = (self.mean + self.std * torch.special.ndtri(u.clamp(min=1e-9))).sigmoid()
        elif self.density == "mode":  # eq. 20, whose u runs the other way
            u = u - self.scale * ((math.pi / 2 * (1 - u)).cos() ** 2 - u)
        elif self.density == "cosmap":  # eq. 21
            u = 1 - 1 / ((math.pi / 2 * u).tan() + 1)
        return u.clamp(0, 1 - 2**-24).float()


@dataclass(frozen=True)
class Ddpm:
    """Variance-preserving diffusion in discrete time (Ho et al., arXiv:2006.11239).

    alphas_cumprod: (T,), decreasing; may end in 0 (zero terminal SNR, arXiv:2305.08891).
    prediction: "epsilon", or "v_prediction" (Salimans & Ho, arXiv:2202.00512).
    """

    alphas_cumprod: Tensor
    prediction: str = "epsilon"
    times: Times = Times()

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Ddpm:
        """The process of a diffusers scheduler with `alphas_cumprod`."""
        return cls(scheduler.alphas_cumprod.float(), scheduler.config.prediction_type)

    def timesteps(self, u: Tensor, size: tuple[int, int]) -> Tensor:
        """Uniform u in [0, 1) to integer timesteps in [0, T), the same for every size."""
        return (self.times.level(u) * len(self.alphas_cumprod)).long()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """xt = alpha x0 + sigma noise (DDPM eq. 4)."""
        alpha, sigma = self.coefficients(t, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """noise itself, or v = alpha noise - sigma x0."""
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = self.coefficients(t, x0)
        return alpha * noise - sigma * x0

    def to(self, device: torch.device | str) -> Ddpm:
        """With its table on a device, where the loop reads it without waiting."""
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def tuned(self, times: Times, shift: float | None) -> Ddpm:
        """With times of another density; a schedule of betas cannot be shifted."""
        if shift is not None:
            why = "the base's noise follows a schedule of betas"
            raise Usage("--shift is for flow models", why=why, fix="leave it out")
        return replace(self, times=times)

    def clean(self, xt: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """(xt - sigma noise) / alpha, or alpha xt - sigma v."""
        alpha, sigma = self.coefficients(t, xt)
        if self.prediction == "epsilon":
            return (xt - sigma * prediction) / alpha
        return alpha * xt - sigma * prediction

    def snr(self, t: Tensor) -> Tensor:
        """Signal over noise, alpha^2 / sigma^2, (B,)."""
        squared = self.alphas_cumprod[t]
        return squared / (1 - squared)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        squared = self.alphas_cumprod[t].view(-1, *[1] * (like.ndim - 1))
        return squared.sqrt().to(like.dtype), (1 - squared).sqrt().to(like.dtype)


@dataclass(frozen=True)
class Ramp:
    """A shift that grows with the picture, as FLUX.1 dev is trained and sampled.

    mu is linear in the number of 2 x 2 latent patches: `low` at `few`, `high` at `many`; the shift
    is exp(mu), or mu itself where `linear`.
    """

    low: float
    high: float
    few: int
    many: int
    linear: bool = False

    def shift(self, size: tuple[int, int]) -> float:
        """The shift for latents of `size` (h, w)."""
        patches = (size[0] // 2) * (size[1] // 2)
        slope = (self.high - self.low) / (self.many - self.few)
        mu = self.low + slope * (patches - self.few)
        return mu if self.linear else math.exp(mu)


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Esser et al., arXiv:2403.03206, eq. 13): the straight path to noise.

    shift: moves times towards noise, which larger pictures need (eq. 23); 1 leaves them.
    The model's time is 1000 sigma.
    """

    shift: float | Ramp = 1.0
    times: Times = Times("logit-normal")

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Flow:
        """The process of a diffusers FlowMatchEulerDiscreteScheduler, its shift included."""
        c = scheduler.config
        if not c.use_dynamic_shifting:
            return cls(float(scheduler.shift))
        linear = c.time_shift_type == "linear"
        return cls(
            Ramp(c.base_shift, c.max_shift, c.base_image_seq_len, c.max_image_seq_len, linear)
        )

    def timesteps(self, u: Tensor, size: tuple[int, int]) -> Tensor:
        """Uniform u in [0, 1) to model times in [0, 1000), for latents of `size` (h, w)."""
        level = self.times.level(u)
        shift = self.shift.shift(size) if isinstance(self.shift, Ramp) else self.shift
        return 1000 * shift * level / (1 + (shift - 1) * level)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """xt = (1 - sigma) x0 + sigma noise."""
        alpha, sigma = self.coefficients(t, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity of the straight path, noise - x0."""
        return noise - x0

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """1 - sigma and sigma."""
        sigma = (t / 1000).view(-1, *[1] * (like.ndim - 1)).to(like.dtype)
        return 1 - sigma, sigma

    def clean(self, xt: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """xt - sigma velocity."""
        return xt - self.coefficients(t, xt)[1] * prediction

    def to(self, device: torch.device | str) -> Flow:
        """Itself: it has no table."""
        return self

    def tuned(self, times: Times, shift: float | None) -> Flow:
        """With times of another density, and a fixed shift unless None."""
        return replace(self, times=times, shift=self.shift if shift is None else shift)
