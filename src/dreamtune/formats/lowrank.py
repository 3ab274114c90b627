"""Sums of LoRAs, and the best LoRA of a rank: by concatenation, and by singular values.

Of all matrices of rank r, that of the r largest singular values of M is the nearest to M (Eckart,
Young 1936). The share of its squared norm that it keeps is called its energy here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamtune.formats.lora import LoraWeights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """How much to keep: at most `rank`, and of it what `energy` (0 to 1) of the whole needs."""

    rank: int | None = None
    energy: float | None = None

    def count(self, values: Tensor) -> int:
        """How many of the singular values, in falling order, to keep; at least one."""
        kept = len(values) if self.rank is None else min(self.rank, len(values))
        if self.energy is not None:
            squares = values.double().square().cumsum(0)
            needed = self.energy * float(squares[-1])
            kept = min(kept, 1 + int((squares < needed * (1 - 1e-12)).sum()))
        return max(1, kept)


def concatenate(parts: Sequence[tuple[LoraWeights, float]]) -> LoraWeights:
    """The sum of weight * LoRA as one LoRA, exactly: its rank is the sum of their ranks."""
    import torch

    shape = max((part.shape for part, _ in parts), key=len)  # others may be written flat
    ones = [1] * (len(shape) - 2)
    downs = [part.down.float().reshape(part.rank, *shape[1:]) for part, _ in parts]
    ups = [
        (weight * part.alpha / part.rank) * part.up.float().reshape(shape[0], part.rank, *ones)
        for part, weight in parts
    ]
    down = torch.cat(downs)
    return LoraWeights(down, torch.cat(ups, dim=1), float(down.shape[0]))


def truncate(weights: LoraWeights, cut: Cut) -> tuple[LoraWeights, float]:
    """The best LoRA within `cut`, and the share of the squared norm that it keeps.

    By QR of both factors, so that only a matrix of the old rank is decomposed.
    """
    import torch

    if weights.rank >= min(weights.shape[0], math.prod(weights.shape[1:])):
        return factorise(weights.change(), cut, weights.magnitude, weights.base_norm)
    up, down = weights.up.double().flatten(1), weights.down.double().flatten(1)
    left, upper = torch.linalg.qr(up)  # (out, r), (r, r)
    right, lower = torch.linalg.qr(down.T)  # (in, r), (r, r)
    u, values, v = torch.linalg.svd(weights.alpha / weights.rank * upper @ lower.T)
    found = (left @ u, values, v @ right.T)
    return _built(found, weights.shape, cut, weights.magnitude, weights.base_norm)


def factorise(
    change: Tensor, cut: Cut, magnitude: Tensor | None = None, base_norm: bool = False
) -> tuple[LoraWeights, float]:
    """The best LoRA within `cut` of any change, (out, in) or (out, in, kh, kw), and its energy."""
    import torch

    found = torch.linalg.svd(change.float().flatten(1), full_matrices=False)
    return _built(found, tuple(change.shape), cut, magnitude, base_norm)


def _built(
    found: Sequence[Tensor],
    shape: tuple[int, ...],
    cut: Cut,
    magnitude: Tensor | None,
    base_norm: bool,
) -> tuple[LoraWeights, float]:
    """U sqrt(S) and sqrt(S) V, so that both factors are of one size."""
    u, values, v = found
    rank = cut.count(values)
    root = values[:rank].sqrt()
    down = (root[:, None] * v[:rank]).float().cpu().reshape(rank, *shape[1:])
    up = (u[:, :rank] * root).float().cpu().reshape(shape[0], rank, *[1] * (len(shape) - 2))
    squares = values.double().square()
    energy = float(squares[:rank].sum() / squares.sum()) if squares.any() else 1.0
    return LoraWeights(
        down.contiguous(), up.contiguous(), float(rank), magnitude, base_norm
    ), energy
