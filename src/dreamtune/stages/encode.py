"""Photos and captions to what the training loop reads; frozen encoders run here and only here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamtune import console, devices
from dreamtune.errors import Usage
from dreamtune.settings import Train
from dreamtune.store import Store
from dreamtune.surroundings import library_versions, thread_count

Size = tuple[int, int]  # (width, height) px

if TYPE_CHECKING:
    import torch

    from dreamtune.bases import Found
    from dreamtune.data.batches import Order, Prior, Table
    from dreamtune.data.cache import Cache, CropPlan, Tensors
    from dreamtune.data.dataset import Sample
    from dreamtune.families import Family


@dataclass(frozen=True)
class Encoded:
    """All that batches are cut from, on the device, and who is next."""

    table: Table
    order: Order
    prior: Prior | None = None


@dataclass(frozen=True)
class Lesson:
    """What a run shows: photos of the subject with how often each is shown and the caption that
    names only its class; and class images, or none.
    """

    subjects: Sequence[tuple[Sample, int, str]]  # sample, repeats, class caption
    classes: Sequence[Sample] = ()
    taught: bool = False  # by the base's own predictions


@dataclass(frozen=True)
class Encoder:
    """A base's frozen encoders and the cache of what they gave.

    resolution: px of a square crop; other aspects keep its area.
    live_text: the text encoders are trained, so captions are only cut into tokens here.
    """

    base: Found
    family: Family
    train: Train
    store: Store
    device: torch.device
    resolution: int
    live_text: bool

    def encode(self, lesson: Lesson, batch: int) -> Encoded:
        """The table of all samples, and an order in which `batch` subjects make an update."""
        from dreamtune.data.batches import Order, Prior

        plan, train = self._crop_plan(), self.train
        sizes = [plan.size_for(sample) for sample, _, _ in lesson.subjects]
        repeats = [repeats for _, repeats, _ in lesson.subjects]
        buckets = {size: _repeated(sizes, repeats, size) for size in sorted(set(sizes))}
        order = Order([*buckets.values()], batch, train.variants, train.seed)
        prior = Prior(order) if lesson.taught else None
        shown = dict(zip(buckets, order.shown(train.steps), strict=True))
        plans = [_enough(plan, size, shown[size] / len(buckets[size])) for size in sizes]
        if lesson.classes:
            shares = {size: len(members) for size, members in buckets.items()}
            dealt = _deal(len(lesson.classes), shares)
            members = [[len(sizes) + i for i, s in enumerate(dealt) if s == b] for b in buckets]
            prior = Prior(order, Order(members, batch, train.variants, train.seed))
            plans += [_enough(plan, size, shown[size] / dealt.count(size)) for size in dealt]
        return Encoded(self._table(lesson, plans), order, prior)

    def _table(self, lesson: Lesson, plans: Sequence[CropPlan]) -> Table:
        """Subjects and then class images, each cut by its plan."""
        from dreamtune.data.batches import CLASS, SUBJECT, TEACHER, Table
        from dreamtune.data.cache import Cache, encode_photo

        cache = Cache(self.store.path / "cache", self._arithmetic())
        vae = self.base.fingerprint("vae")
        samples = [*(sample for sample, _, _ in lesson.subjects), *lesson.classes]
        with console.progress(len(samples), "encoding") as bar:
            images = []
            for sample, plan in zip(samples, plans, strict=True):
                encode = self.family.encode_image
                images.append(encode_photo(sample, plan, encode, vae, cache, self.device))
                bar.advance()
        said = [sample.caption for sample in samples]
        plain = [caption for _, _, caption in lesson.subjects]
        empty = [""] if self.train.caption_dropout else []
        different = dict.fromkeys([*said, *plain, *empty])
        captions = {caption: i for i, caption in enumerate(different)}
        rows = [captions[caption] for caption in said]
        by_role = {SUBJECT: rows, CLASS: rows, TEACHER: [captions[caption] for caption in plain]}
        texts = self._encode_text([*captions], cache)
        name = "tokens" if self.live_text else "text"
        weights = [sample.weight for sample in samples]
        table = Table(images, texts, name, by_role, weights, captions.get(""))
        return table.to(self.device)

    def _arithmetic(self) -> dict[str, Any]:
        """What the last bits of an encoding depend on, apart from its inputs."""
        device = devices.model_of(self.device)
        return {"device": device, "libraries": library_versions(), "threads": thread_count()}

    def _crop_plan(self) -> CropPlan:
        from dreamtune.data import crops
        from dreamtune.data.cache import CropPlan

        train, least = self.train, self.family.multiple
        step = max(least, 64 // least * least)
        return CropPlan(
            sizes=tuple(crops.buckets(self.resolution, step)),
            variants=train.variants,
            area=(train.crop_area[0], train.crop_area[1]),
            jitter=train.jitter,
            seed=train.seed,
            plain=train.variants == 1,
        )

    def _encode_text(self, captions: Sequence[str], cache: Cache) -> list[Tensors]:
        """Text states by caption, or token ids when the text encoders run in the loop."""
        tokens = [{s.name: s.tokenize([c]) for s in self.family.text} for c in captions]
        return tokens if self.live_text else [self._text_states(ids, cache) for ids in tokens]

    def _text_states(self, tokens: Tensors, cache: Cache) -> Tensors:
        """States (1, ...) of one caption. Its ids cover the tokenizers and what words they bind."""
        import torch

        facts = {
            "family": self.family.name,
            "encoders": [self.base.fingerprint(name) for name in tokens],
            "dtypes": [str(stack.encoder.dtype) for stack in self.family.text],
            "ids": [ids.tolist() for ids in tokens.values()],
        }

        def make() -> Tensors:
            moved = {name: ids.to(self.device) for name, ids in tokens.items()}
            with torch.no_grad():
                states = self.family.encode_text(moved)
            return {name: state.cpu() for name, state in states.items()}

        return cache.get(facts, make)


def _enough(plan: CropPlan, size: Size, times: float) -> CropPlan:
    """The plan for a photo of one bucket that is shown so often: a short run encodes no crop that
    it never shows.
    """
    return dataclasses.replace(plan, sizes=(size,), variants=min(plan.variants, math.ceil(times)))


def _repeated(sizes: Sequence[Size], repeats: Sequence[int], size: Size) -> list[int]:
    """The samples of one bucket, each as often as it is shown in a round."""
    return [i for i, found in enumerate(sizes) if found == size for _ in range(repeats[i])]


def _deal(count: int, shares: dict[Size, int]) -> list[Size]:
    """A bucket for each of `count` class images, in proportion to the subject's, none left out."""
    total, sizes = sum(shares.values()), [*shares]
    if count < len(sizes):
        raise Usage(
            f"{count} class images are too few for photos of {len(sizes)} shapes",
            fix=f"--num-class-images {len(sizes)} or more",
        )
    extra = count - len(sizes)
    ends = [
        round(extra * sum(shares[s] for s in sizes[: i + 1]) / total) for i in range(len(sizes))
    ]
    starts = [0, *ends[:-1]]
    return [s for s, a, b in zip(sizes, starts, ends, strict=True) for _ in range(b - a + 1)]
