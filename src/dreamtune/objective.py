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

if TYPE_CHECKING:
    from dreamtune.families import Family

Batch = dict[str, Any]  # tensors (B, ...), and "text" or "tokens": dicts of tensors (B, ...)
Loss = Callable[[Tensor, Tensor], Tensor]
Teacher = Callable[[], contextlib.AbstractContextManager[None]]


class Objective(nn.Module):
    """Noise latents, predict, compare.

    live: the parts that run in the loop; without "text" a batch brings its text states along.
    loss: (prediction, target) to errors (B,).
    teacher: makes a context in which the family is the base before training.
    """

    def __init__(
        self, family: Family, live: set[str], loss: Loss, teacher: Teacher = contextlib.nullcontext
    ) -> None:
        super().__init__()
        self.denoiser = family.denoiser
        self.encoders = nn.ModuleList(s.encoder for s in family.text if "text" in live)
        self._family, self._loss, self._teacher = family, loss, teacher

    def forward(self, batch: Batch) -> Tensor:
        """Errors (B,) in fp32.

        batch: mean, std, posterior_noise, noise (B, C, h, w); u (B,) in [0, 1); meta (B, 6);
        text: states by name, or tokens: ids by text stack. taught: the last rows of which the
        teacher's prediction is the target.
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
        return self._loss(prediction, target)

    def _predict(self, xt: Tensor, t: Tensor, batch: Batch, rows: slice) -> Tensor:
        """The family's prediction for some rows of the batch, whose xt and t are given."""
        name = "tokens" if self.encoders else "text"
        text = {k: v[rows] for k, v in batch[name].items()}
        states = self._family.encode_text(text) if self.encoders else text
        cond = self._family.condition(states, batch["meta"][rows])
        return self._family.predict(xt, t, cond)
