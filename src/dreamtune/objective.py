"""Objective(family, method): a batch to one error per sample. The one module that is trained.

It holds every part that runs in the loop, so that DDP, FSDP, `torch.compile` and CUDA graphs see
one callable, whatever the family and the method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreamtune import losses

if TYPE_CHECKING:
    from dreamtune.families import Family

Batch = dict[str, Any]  # tensors (B, ...), and "text" or "tokens": dicts of tensors (B, ...)
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]  # see losses.py
Weighting = Callable[[Any, Tensor], Tensor]  # see weightings.py
Teacher = Callable[[], contextlib.AbstractContextManager[None]]


class Objective(nn.Module):
    """Noise latents, predict, compare.

    live: the parts that run in the loop; without "text" a batch brings its text states along.
    distance: of a prediction from its target.
    teacher: makes a context in which the family is the base before training.
    weighting: how much a row counts for its timestep.
    """

    def __init__(
        self,
        family: Family,
        live: set[str],
        distance: Distance,
        teacher: Teacher = contextlib.nullcontext,
        weighting: Weighting | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = family.denoiser
        self.encoders = nn.ModuleList(s.encoder for s in family.text if "text" in live)
        self._family, self._teacher = family, teacher
        self._distance, self._weighting = distance, weighting

    def forward(self, batch: Batch) -> Tensor:
        """Errors (B,) in fp32.

        batch: mean, std, posterior_noise, noise (B, C, h, w); u (B,) in [0, 1); meta (B, 6);
        text: states by name, or tokens: ids by text stack. taught: the last rows of which the
        teacher's prediction is the target. mask: (B, 1, h, w), how much each place counts, or
        left out.
        """
        family = self._family
        x0 = batch["mean"] + batch["std"] * batch["posterior_noise"]
        t = family.process.timesteps(batch["u"], tuple(x0.shape[-2:]))
        xt = family.process.add_noise(x0, batch["noise"], t)
        target = family.process.target(x0, batch["noise"], t)
        prediction = self._predict(xt, t, batch, slice(None))
        if taught := batch.get("taught", 0):
            rows = slice(-taught, None)
            with torch.no_grad(), self._teacher():
                lesson = self._predict(xt[rows], t[rows], batch, rows)
            target = torch.cat([target[:-taught], lesson.to(target.dtype)])
        alpha, sigma = family.process.coefficients(t, target)
        errors = self._distance(prediction, target, sigma / alpha)
        error = losses.mean(errors, batch.get("mask"))
        return error * self._weighting(family.process, t) if self._weighting else error

    def _predict(self, xt: Tensor, t: Tensor, batch: Batch, rows: slice) -> Tensor:
        """The family's prediction for some rows of the batch, whose xt and t are given."""
        name = "tokens" if self.encoders else "text"
        text = {k: v[rows] for k, v in batch[name].items()}
        states = self._family.encode_text(text) if self.encoders else text
        cond = self._family.condition(states, batch["meta"][rows])
        return self._family.predict(xt, t, cond)
