"""Noise processes: how a clean latent becomes a noisy one, and what a model is asked to predict.

A process maps uniform numbers to timesteps, so that a draw is one number in [0, 1) whatever the
family. x0, noise, xt and target have shape (B, C, h, w); t is what the model is given, (B,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Process(Protocol):
    def timesteps(self, u: Tensor) -> Tensor: ...
    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Ddpm:
    """Variance-preserving diffusion in discrete time (Ho et al., arXiv:2006.11239).

    alphas_cumprod: (T,), decreasing; may end in 0 (zero terminal SNR, arXiv:2305.08891).
    prediction: "epsilon", or "v_prediction" (Salimans & Ho, arXiv:2202.00512).
    """

    alphas_cumprod: Tensor
    prediction: str = "epsilon"

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Ddpm:
        """The process of a diffusers scheduler with `alphas_cumprod`."""
        return cls(scheduler.alphas_cumprod.float(), scheduler.config.prediction_type)

    def timesteps(self, u: Tensor) -> Tensor:
        """Uniform u in [0, 1) to integer timesteps in [0, T)."""
        return (u * len(self.alphas_cumprod)).long()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """xt = alpha x0 + sigma noise (DDPM eq. 4)."""
        alpha, sigma = self._coefficients(t, x0)
        return alpha * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """noise itself, or v = alpha noise - sigma x0."""
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = self._coefficients(t, x0)
        return alpha * noise - sigma * x0

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        squared = self.alphas_cumprod.to(like.device)[t].view(-1, *[1] * (like.ndim - 1))
        return squared.sqrt().to(like.dtype), (1 - squared).sqrt().to(like.dtype)


@dataclass(frozen=True)
class Flow:
    """Rectified flow with logit-normal times (Esser et al., arXiv:2403.03206, eq. 19).

    sigmas, times: (T,) from the scheduler, noisiest first; `times` is what the model is given.
    """

    sigmas: Tensor
    times: Tensor

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Flow:
        """The process of a diffusers FlowMatchEulerDiscreteScheduler, its shift included."""
        return cls(scheduler.sigmas[: len(scheduler.timesteps)].float(), scheduler.timesteps)

    def timesteps(self, u: Tensor) -> Tensor:
        """Uniform u in [0, 1) to model times, logit-normal (mean 0, std 1) over the schedule."""
        # The quantile function turns one uniform number into one normal number.
        position = torch.special.ndtri(u.double().clamp(1e-9, 1 - 1e-9)).sigmoid()
        return self.times.to(u.device)[(position * len(self.times)).long()]

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """xt = (1 - sigma) x0 + sigma noise."""
        sigma = self._sigma(t, x0)
        return (1 - sigma) * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The velocity of the straight path, noise - x0."""
        return noise - x0

    def _sigma(self, t: Tensor, like: Tensor) -> Tensor:
        times = self.times.to(like.device)
        index = (times[None] - t[:, None]).abs().argmin(1)
        return self.sigmas.to(like.device)[index].view(-1, *[1] * (like.ndim - 1)).to(like.dtype)
