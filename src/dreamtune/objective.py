"""Objective(family, method): a batch to one error per sample. The one module that is trained.

It holds every part that runs in the loop, so that DDP, FSDP, `torch.compile` and CUDA graphs see
one callable, whatever the family and the method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from dreamtune.families import Family

Batch = dict[str, Any]  # tensors (B, ...), and "text" or "tokens": dicts of tensors (B, ...)
Loss = Callable[[Tensor, Tensor], Tensor]


class Objective(nn.Module):
    """Noise latents, predict, compare.

    live: the parts that run in the loop; without "text" a batch brings its text states along.
    loss: (prediction, target) to errors (B,).
    """

    def __init__(self, family: Family, live: set[str], loss: Loss) -> None:
        super().__init__()
        self.denoiser = family.denoiser
        self.encoders = nn.ModuleList(s.encoder for s in family.text if "text" in live)
        self._family, self._loss = family, loss

    def forward(self, batch: Batch) -> Tensor:
        """Errors (B,) in fp32.

        batch: mean, std, posterior_noise, noise (B, C, h, w); u (B,) in [0, 1); meta (B, 6);
        text: states by name, or tokens: ids by text stack.
        """
        family = self._family
        x0 = batch["mean"] + batch["std"] * batch["posterior_noise"]
        t = family.process.timesteps(batch["u"])
        xt = family.process.add_noise(x0, batch["noise"], t)
        target = family.process.target(x0, batch["noise"], t)
        text = family.encode_text(batch["tokens"]) if self.encoders else batch["text"]
        cond = family.condition(text, batch["meta"])
        return self._loss(family.predict(xt, t, cond), target)
