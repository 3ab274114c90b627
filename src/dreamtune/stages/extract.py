"""extract: the difference of two models as a LoRA."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreamtune import console
from dreamtune.errors import NonFinite, Usage
from dreamtune.formats import lowrank
from dreamtune.formats.lora import DENOISERS, TEXT_ENCODERS
from dreamtune.formats.lowrank import Cut
from dreamtune.names import slug
from dreamtune.stages import convert, models, sources
from dreamtune.stages.merge import Kept
from dreamtune.stages.models import Model, Readable, Tuned
from dreamtune.stages.sources import Ground, Source
from dreamtune.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.formats.lora import Adapter


@dataclass(frozen=True)
class Difference:
    """What was found: the adapter, and what of the difference it does not hold."""

    source: Source
    energy: float  # the share of the squared norm of the modules' differences that is kept
    left_out: list[str]  # tensors that differ and that no LoRA can change


@dataclass(frozen=True)
class Pair:
    """Two models of one architecture."""

    name: str
    tuned: Model
    base: Model
    ground: Ground
    parts: list[str]

    def empty(self) -> Source:
        """What will be written, as far as it is known before the work."""
        said = {"ss_sd_model_name": self.base.name, "modelspec.title": self.name}
        return Source(self.name, self.name, {part: {} for part in self.parts}, {}, said)

    def run(self, cut: Cut, device: str) -> Difference:
        """The best LoRA within `cut` of every linear layer and convolution that differs."""
        adapter: Adapter = defaultdict(dict)
        kept, left_out = Kept(), []
        pairs = [
            (part, *pair) for part in self.parts for pair in _pairs(part, self.tuned, self.base)
        ]
        with console.progress(len(pairs), "extracting") as bar:
            for part, name, new, old in pairs:
                change = _change(f"{part}.{name}", new, old, device)
                module = name.removesuffix(".weight")
                if change is not None and f"{part}.{module}" in self.ground.shapes:
                    adapter[part][module] = kept.add(*lowrank.factorise(change, cut))
                elif change is not None:
                    left_out.append(f"{part}.{name}")
                bar.advance()
        if not adapter:
            raise Usage(f"{self.name} and {self.base.name} do not differ where a LoRA could")
        return Difference(replace(self.empty(), adapter=dict(adapter)), kept.share, left_out)


def plan(store: Store, tuned: str, base: str | None, text: bool) -> Pair:
    """The two models. Usage when one is none, or they are not of one architecture.

    base: the one that a run was trained from when None. text: of the text encoders too.
    """
    model = convert.model_of(store, tuned)
    if model is None:
        raise Usage(f"{tuned} is an adapter already", fix="`dreamtune resize` makes it smaller")
    if base is None and not isinstance(model, Tuned):
        raise Usage(f"{tuned} does not say what it was made from", fix="name it: --base")
    other = convert.model_of(store, base) if base else model.base  # type: ignore[union-attr]
    if other is None:
        raise Usage(f"{base} is no model")
    ground = sources.ground(other)
    parts = [part for part in (*DENOISERS, *(TEXT_ENCODERS if text else ())) if part in other.parts]
    for part in parts:
        list(_pairs(part, model, other))
    return Pair(slug(Path(tuned).stem), model, other, ground, parts)


def _pairs(part: str, tuned: Model, base: Model) -> Iterator[tuple[str, Readable, Readable]]:
    new, old = models.named(tuned, part), models.named(base, part)
    shapes = {name: tensor.final_shape for name, tensor in new.items()}
    for name, tensor in old.items():
        if name.endswith("position_ids") or name not in new:
            continue
        if shapes[name] != tensor.final_shape:
            why = f"{part}.{name} is {[*shapes[name]]} and {[*tensor.final_shape]}"
            raise Usage(f"{tuned.name} was not made from {base.name}", why=why)
        yield name, new[name], tensor
    if missing := [name for name in old.keys() - new.keys() if not name.endswith("position_ids")]:
        why = f"it has no {part}.{min(missing)}"
        raise Usage(f"{tuned.name} was not made from {base.name}", why=why)


def _change(name: str, new: Readable, old: Readable, device: str) -> Tensor | None:
    """new - old in fp32; None when they are equal."""
    first, second = new.read(), old.read()
    if first.dtype == second.dtype and first.equal(second):
        return None
    change = first.to(device).float() - second.to(device).float()
    if not change.isfinite().all():
        raise NonFinite(f"{name} has values that are no finite numbers", fix="see `inspect --deep`")
    return change if change.any() else None
