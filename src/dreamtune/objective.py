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
from torch.nn import functional

from dreamtune import losses, perceptual

if TYPE_CHECKING:
    from dreamtune.families import Family
    from dreamtune.perceptual import Features

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
    features: by which rows with little noise are compared as pictures too; see perceptual.py.
    """

    def __init__(
        self,
        family: Family,
        live: set[str],
        distance: Distance,
        teacher: Teacher = contextlib.nullcontext,
        weighting: Weighting | None = None,
        features: Features | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = family.denoiser
        self.encoders = nn.ModuleList(s.encoder for s in family.text if "text" in live)
        self._family, self._teacher = family, teacher
        self._distance, self._weighting, self._features = distance, weighting, features

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
        if self._features:
            error = self._with_looks(error, prediction, target, xt, t, batch.get("mask"))
        return error * self._weighting(family.process, t) if self._weighting else error

    def _with_looks(
        self,
        error: Tensor,
        prediction: Tensor,
        target: Tensor,
        xt: Tensor,
        t: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Errors (B,), those of rows with little noise mixed with how different they look.

        Which rows these are is read from the device, the one wait for it in a step.
        """
        assert self._features
        alpha, sigma = self._family.process.coefficients(t, error)
        rows = (sigma < perceptual.LOW_NOISE * alpha).nonzero()[:, 0]
        if not len(rows):
            return error
        with torch.autocast(error.device.type, enabled=False):  # VAEs do not bear fp16
            ours = self._picture(xt[rows], prediction[rows], t[rows])
            with torch.no_grad():
                theirs = self._picture(xt[rows], target[rows], t[rows])
            if mask is not None:
                seen = functional.interpolate(mask[rows].float(), ours.shape[-2:])
                ours, theirs = ours * seen, theirs * seen
            looks = perceptual.distance(self._features, ours, theirs)
        share = perceptual.SHARE
        return error.index_copy(0, rows, share * looks + (1 - share) * error[rows])

    def _picture(self, xt: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in fp32 of the clean latents that a prediction means."""
        clean = self._family.process.clean(xt.float(), prediction.float(), t)
        return self._family.decode_image(clean).float()

    def _predict(self, xt: Tensor, t: Tensor, batch: Batch, rows: slice) -> Tensor:
        """The family's prediction for some rows of the batch, whose xt and t are given."""
        name = "tokens" if self.encoders else "text"
        text = {k: v[rows] for k, v in batch[name].items()}
        states = self._family.encode_text(text) if self.encoders else text
        cond = self._family.condition(states, batch["meta"][rows])
        return self._family.predict(xt, t, cond)
