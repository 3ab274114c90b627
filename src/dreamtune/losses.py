"""How far a prediction is from its target, element by element, in fp32.

A distance is a function of this module; its name is what `--loss` takes. All take prediction and
target, (B, C, h, w), and `noisiness`, sigma / alpha of each row as (B, 1, 1, 1); all give
(B, C, h, w). How much a row counts for its timestep is another matter: see weightings.py.
"""

from __future__ import annotations

from torch import Tensor

DELTA = 0.1  # of Huber's loss on pure noise


def l2(prediction: Tensor, target: Tensor, noisiness: Tensor | None = None) -> Tensor:
    """Squared error (DDPM eq. 14)."""
    return (prediction.float() - target.float()).square()


def huber(prediction: Tensor, target: Tensor, noisiness: Tensor) -> Tensor:
    """Pseudo-Huber loss, which forgives what no training could explain: a flaw in a photo.

    Squared for errors far below delta, linear far above it. Delta falls from 1 without noise to
    DELTA on pure noise (Khrapov et al., arXiv:2403.16728, section 3.3, the SNR schedule).
    """
    delta = (1 - DELTA) / (1 + noisiness).square() + DELTA
    squared = (prediction.float() - target.float()).square()
    return 2 * delta * ((squared + delta.square()).sqrt() - delta)


def mean(errors: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of each row's errors (B, C, h, w), each times its mask (B, 1, h, w): (B,).

    A pixel counts the same in every photo, so that a row with little in its mask counts less.
    """
    return (errors if mask is None else errors * mask).flatten(1).mean(1)
