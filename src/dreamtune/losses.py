"""How far a prediction is from its target: (B, ...) and (B, ...) to one error per sample, (B,).

A loss is a function of this module; its name is what `--loss` takes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample (DDPM eq. 14), in fp32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def huber(prediction: Tensor, target: Tensor) -> Tensor:
    """Huber loss with delta 1, twice over so that small errors cost what they do in l2."""
    error = functional.huber_loss(prediction.float(), target.float(), reduction="none")
    return 2 * error.flatten(1).mean(1)
