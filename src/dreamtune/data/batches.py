"""batch(step): which samples an update sees, and every random number it uses.

A pure function of (seed, step): nothing is stored to resume, and world size, accumulation and
workers only cut the same global batch in other ways.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dreamtune.draws import generator

Batch = dict[str, Any]


SUBJECT, CLASS, TEACHER = "subject", "class", "teacher"  # what a row of a batch is for


@dataclass(frozen=True)
class Pick:
    """One row of an update. `ordinal` counts rows of its role over the run and keys its draws.

    role: SUBJECT; CLASS, a picture of something else of the class; or TEACHER, a photo of the
    subject under the class's caption, whose target is what the base makes of it.
    """

    ordinal: int
    sample: int
    variant: int
    role: str = SUBJECT


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
        return self.take(*self.turn(step), step)

    def turn(self, step: int) -> tuple[int, int]:
        """Which bucket update `step` reads, and how many batches of it came before."""
        shares = self._shares()
        epoch, place = divmod(step, sum(shares))
        turns = [b for b, share in enumerate(shares) for _ in range(share)]
        order = torch.randperm(len(turns), generator=generator(self.seed, "buckets", epoch))
        turn = [turns[i] for i in order]
        bucket = turn[place]
        return bucket, epoch * shares[bucket] + turn[:place].count(bucket)

    def shown(self, steps: int) -> list[int]:
        """How many samples of each bucket `steps` updates read at most."""
        shares = self._shares()
        epochs = math.ceil(steps / sum(shares))
        return [min(steps, epochs * share) * self.size for share in shares]

    def _shares(self) -> list[int]:
        """Batches an epoch, in proportion to the buckets."""
        sizes = [len(bucket) for bucket in self.buckets]
        return [size // math.gcd(*sizes) for size in sizes]

    def take(self, bucket: int, earlier: int, step: int, role: str = SUBJECT) -> list[Pick]:
        """A global batch of one bucket, after `earlier` others of it."""
        return [
            self._pick(bucket, earlier * self.size + i, step * self.size + i, role)
            for i in range(self.size)
        ]

    def _pick(self, bucket: int, position: int, ordinal: int, role: str) -> Pick:
        members = self.buckets[bucket]
        lap, place = divmod(position, len(members))
        source = generator(self.seed, "order", role, bucket, lap)
        order = torch.randperm(len(members), generator=source)
        return Pick(ordinal, members[int(order[place])], lap % self.variants, role)


@dataclass(frozen=True)
class Prior:
    """What keeps the class as it was, a row for each row of the subject (arXiv:2208.12242, 3.3).

    classes: class images by the subject's buckets; without them the base itself is the teacher.
    """

    subjects: Order
    classes: Order | None = None

    def picks(self, step: int) -> list[Pick]:
        """The rows that go with the subject's rows of update `step`, of the same size."""
        if self.classes:
            return self.classes.take(*self.subjects.turn(step), step, CLASS)
        return [replace(pick, role=TEACHER) for pick in self.subjects.picks(step)]


@dataclass(frozen=True)
class Table:
    """Everything that batches are made from.

    images:   by sample, mean and std (K, C, h, w) and meta (K, 6)
    texts:    by caption, either states or token ids, each (1, ...); `text_name` says which
    captions: by role and sample, the caption
    weights:  by sample
    empty:    the caption that says nothing, where it is needed
    """

    images: Sequence[dict[str, Tensor]]
    texts: Sequence[dict[str, Tensor]]
    text_name: str  # "text" or "tokens"
    captions: Mapping[str, Sequence[int]]
    weights: Sequence[float]
    empty: int | None = None

    def to(self, device: torch.device) -> Table:
        """A personal set is small: it lives on the device and batches are cut out there."""

        def move(row: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.to(device) for k, v in row.items()}

        images, texts = [move(r) for r in self.images], [move(r) for r in self.texts]
        return replace(self, images=images, texts=texts)


@dataclass(frozen=True)
class Chance:
    """What is drawn beside noise and time.

    caption_dropout: share of rows whose caption is left out, for guidance without a condition
        (Ho & Salimans, arXiv:2207.12598, section 3.2)
    noise_offset: standard deviation of noise that is the same all over a channel, by which a model
        learns to make whole pictures darker or brighter
    """

    caption_dropout: float = 0.0
    noise_offset: float = 0.0


def make_batch(
    table: Table,
    picks: Sequence[Pick],
    seed: int,
    shares: Mapping[str, float],
    chance: Chance = Chance(),
) -> Batch:
    """The tensors of some picks, (B, ...) each, on the table's device.

    shares: by role, what one row of weight 1 adds to the loss of the global batch.
    """
    images = [table.images[p.sample] for p in picks]
    batch: Batch = {
        name: torch.stack([image[name][p.variant] for image, p in zip(images, picks, strict=True)])
        for name in ("mean", "std", "meta")
    }
    latent = batch["mean"]
    batch |= {
        k: v.to(latent.device, non_blocking=True)
        for k, v in _draws(picks, latent.shape, seed, chance.noise_offset)
    }
    texts = [table.texts[_caption(table, p, seed, chance.caption_dropout)] for p in picks]
    batch[table.text_name] = {name: torch.cat([t[name] for t in texts]) for name in texts[0]}
    weights = torch.tensor([table.weights[p.sample] * shares[p.role] for p in picks])
    batch["weight"] = weights.to(latent.device, non_blocking=True)
    batch["taught"] = sum(p.role == TEACHER for p in picks)
    return batch


def _caption(table: Table, pick: Pick, seed: int, dropout: float) -> int:
    """Which caption a row has: its own, or the empty one."""
    if dropout and table.empty is not None:
        source = generator(seed, "caption", pick.role, pick.ordinal)
        if float(torch.rand((), generator=source)) < dropout:
            return table.empty
    return table.captions[pick.role][pick.sample]


def _draws(
    picks: Sequence[Pick], shape: torch.Size, seed: int, offset: float
) -> list[tuple[str, Tensor]]:
    """Posterior noise, noise (B, C, h, w) and u (B,), each row keyed by its role and ordinal."""
    rows = []
    for pick in picks:
        source = generator(seed, pick.role, pick.ordinal)
        posterior, noise = torch.randn(2, *shape[1:], generator=source)
        u = torch.rand((), generator=source)
        if offset:
            source = generator(seed, "offset", pick.role, pick.ordinal)
            noise = noise + offset * torch.randn(shape[1], 1, 1, generator=source)
        rows.append((posterior, noise, u))
    columns = zip(*rows, strict=True)
    return list(zip(("posterior_noise", "noise", "u"), map(torch.stack, columns), strict=True))
