"""Photos and captions to what the training loop reads; frozen encoders run here and only here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamtune import console, devices, families
from dreamtune.artifacts import Store, library_versions, thread_count
from dreamtune.settings import Train

if TYPE_CHECKING:
    import torch

    from dreamtune.data.batches import Order, Table
    from dreamtune.data.cache import Cache, CropPlan, Tensors
    from dreamtune.data.dataset import Sample
    from dreamtune.families import Family


@dataclass(frozen=True)
class Encoded:
    """All that batches are cut from, on the device, and who is next."""

    table: Table
    order: Order


@dataclass(frozen=True)
class Encoder:
    """A base's frozen encoders and the cache of what they gave.

    resolution: px of a square crop; other aspects keep its area.
    live_text: the text encoders are trained, so captions are only cut into tokens here.
    """

    family: Family
    train: Train
    store: Store
    device: torch.device
    resolution: int
    live_text: bool

    def encode(self, repeated: Sequence[tuple[Sample, int]], batch: int) -> Encoded:
        """The table of all samples, and an order in which `batch` of them make an update.

        repeated: each sample, and how often it is shown for once elsewhere.
        """
        from dreamtune.data.batches import Order, Table
        from dreamtune.data.cache import Cache, encode_photo

        train, plan = self.train, self._crop_plan()
        samples = [sample for sample, _ in repeated]
        cache = Cache(self.store.path / "cache", self._arithmetic())
        vae = families.fingerprint(train.base, "vae")
        with console.progress(len(samples), "encoding") as bar:
            images = []
            for sample in samples:
                encode = self.family.encode_image
                images.append(encode_photo(sample, plan, encode, vae, cache, self.device))
                bar.advance()
        text = self._encode_text([sample.caption for sample in samples], cache)
        name = "tokens" if self.live_text else "text"
        table = Table(images, text, name, [sample.weight for sample in samples])
        buckets: dict[tuple[int, int], list[int]] = {}
        for i, (sample, repeats) in enumerate(repeated):
            buckets.setdefault(plan.size_for(sample), []).extend([i] * repeats)
        members = [buckets[size] for size in sorted(buckets)]
        return Encoded(table.to(self.device), Order(members, batch, train.variants, train.seed))

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
        )

    def _encode_text(self, captions: Sequence[str], cache: Cache) -> list[Tensors]:
        """Text states by sample, or token ids when the text encoders run in the loop."""
        stacks = self.family.text
        tokens = {c: {s.name: s.tokenize([c]) for s in stacks} for c in dict.fromkeys(captions)}
        if self.live_text:
            return [tokens[c] for c in captions]
        states = {c: self._text_states(ids, cache) for c, ids in tokens.items()}
        return [states[c] for c in captions]

    def _text_states(self, tokens: Tensors, cache: Cache) -> Tensors:
        """States (1, ...) of one caption. Its ids cover the tokenizers and what words they bind."""
        import torch

        facts = {
            "family": self.family.name,
            "encoders": [families.fingerprint(self.train.base, name) for name in tokens],
            "dtypes": [str(stack.encoder.dtype) for stack in self.family.text],
            "ids": [ids.tolist() for ids in tokens.values()],
        }

        def make() -> Tensors:
            moved = {name: ids.to(self.device) for name, ids in tokens.items()}
            with torch.no_grad():
                states = self.family.encode_text(moved)
            return {name: state.cpu() for name, state in states.items()}

        return cache.get(facts, make)
