"""batch(step): which samples an update sees, and every random number it uses.

A pure function of (seed, step): nothing is stored to resume, and world size, accumulation and
workers only cut the same global batch in other ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamtune.draws import generator

Batch = dict[str, Any]


@dataclass(frozen=True)
class Pick:
    """One sample of an update. `ordinal` counts samples over the run and keys its draws."""

    ordinal: int
    sample: int
    variant: int


@dataclass(frozen=True)
class Order:
    """Who is next. Each bucket is read as an endless row of permutations of its samples.

    buckets: sample indices by size; size: samples in a global batch; a global batch comes from one
    bucket, and a short bucket is filled from its next permutation.
    """

    buckets: Sequence[Sequence[int]]
    size: int
    variants: int
    seed: int

    def picks(self, step: int) -> list[Pick]:
        """The global batch of update `step`."""
        sizes = [len(bucket) for bucket in self.buckets]
        shares = [size // math.gcd(*sizes) for size in sizes]  # batches an epoch, in proportion
        epoch, place = divmod(step, sum(shares))
        turns = [b for b, share in enumerate(shares) for _ in range(share)]
        order = torch.randperm(len(turns), generator=generator(self.seed, "buckets", epoch))
        turn = [turns[i] for i in order]
        bucket = turn[place]
        earlier = epoch * shares[bucket] + turn[:place].count(bucket)
        return [
            self._pick(bucket, earlier * self.size + i, step * self.size + i)
            for i in range(self.size)
        ]

    def _pick(self, bucket: int, position: int, ordinal: int) -> Pick:
        members = self.buckets[bucket]
        lap, place = divmod(position, len(members))
        order = torch.randperm(len(members), generator=generator(self.seed, "order", bucket, lap))
        return Pick(ordinal, members[int(order[place])], lap % self.variants)


@dataclass(frozen=True)
class Table:
    """Everything that batches are made from.

    images: by sample, mean and std (K, C, h, w) and meta (K, 6)
    text:   by sample, either states or token ids, each (1, ...); `text_name` says which
    weights: by sample
    """

    images: Sequence[dict[str, Tensor]]
    text: Sequence[dict[str, Tensor]]
    text_name: str  # "text" or "tokens"
    weights: Sequence[float]

    def to(self, device: torch.device) -> Table:
        """A personal set is small: it lives on the device and batches are cut out there."""

        def move(row: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.to(device) for k, v in row.items()}

        images, text = [move(r) for r in self.images], [move(r) for r in self.text]
        return Table(images, text, self.text_name, self.weights)


def make_batch(table: Table, picks: Sequence[Pick], seed: int, share: float) -> Batch:
    """The tensors of some picks, (B, ...) each, on the table's device.

    share: what one sample of weight 1 adds to the mean of the global batch.
    """
    images = [table.images[p.sample] for p in picks]
    batch: Batch = {
        name: torch.stack([image[name][p.variant] for image, p in zip(images, picks, strict=True)])
        for name in ("mean", "std", "meta")
    }
    latent = batch["mean"]
    batch |= {
        k: v.to(latent.device, non_blocking=True) for k, v in _draws(picks, latent.shape, seed)
    }
    texts = [table.text[p.sample] for p in picks]
    batch[table.text_name] = {name: torch.cat([t[name] for t in texts]) for name in texts[0]}
    weights = torch.tensor([table.weights[p.sample] * share for p in picks])
    batch["weight"] = weights.to(latent.device, non_blocking=True)
    return batch


def _draws(picks: Sequence[Pick], shape: torch.Size, seed: int) -> list[tuple[str, Tensor]]:
    """Posterior noise, noise (B, C, h, w) and u (B,), each row keyed by its sample's ordinal."""
    rows = []
    for pick in picks:
        source = generator(seed, "sample", pick.ordinal)
        both = torch.randn(2, *shape[1:], generator=source)
        rows.append((both[0], both[1], torch.rand((), generator=source)))
    columns = zip(*rows, strict=True)
    return list(zip(("posterior_noise", "noise", "u"), map(torch.stack, columns), strict=True))
