"""merge: adapters into a model, and adapters into one another."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dreamtune import bases, console
from dreamtune.errors import Usage
from dreamtune.formats import lora, lowrank, target
from dreamtune.formats.ldm import Blocks
from dreamtune.formats.lowrank import Cut
from dreamtune.stages import convert, export, models, sources
from dreamtune.stages.export import Wish
from dreamtune.stages.models import Changed, Readable, Tuned, Written
from dreamtune.stages.sources import Ground, Source
from dreamtune.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.bases.folder import Folder
    from dreamtune.bases.single import Single
    from dreamtune.formats.lora import Adapter, LoraWeights, Update

Weighted = list[tuple["Update", float]]


@dataclass(frozen=True)
class IntoModel:
    """Adapters to add to a model; made before the work, so that what cannot be is refused."""

    model: Folder | Single | Tuned
    sources: list[Source]
    tuned: Tuned

    @classmethod
    def plan(cls, store: Store, refs: Sequence[str], base: str) -> IntoModel:
        """Read the adapters and see that they fit."""
        model = convert.model_of(store, base)
        if model is None:
            raise Usage(f"{base} is no model", fix="--into takes a base, as a file or a folder")
        ground = sources.ground(model)
        found = [sources.find(store, ref, ground.blocks) for ref in refs]
        if not any(source.adapter for source in found):
            raise Usage("a word changes no weights", fix="write it as a file: convert --to words")
        return cls(model, found, into(model, found, ground))

    @property
    def label(self) -> str:
        return ", ".join(f"{s.label}@{s.weight:g}" for s in self.sources)

    @property
    def trigger(self) -> str:
        """What a prompt says to get what the adapters learned, as their metadata has it."""
        phrases = [s.metadata.get("modelspec.trigger_phrase", "") for s in self.sources]
        return " and ".join(filter(None, phrases))

    def write(self, out: Path, precision: str, force: bool) -> Written:
        """The model, and a file for each word that has no place in it."""
        words = {word: v for source in self.sources for word, v in source.words.items()}
        rest = Source(self.label, out.stem, {}, words, {})
        wish = Wish(out if out.suffix else out / "embeddings", force=force)
        beside = export.word_places(rest, wish)
        written = convert.write_model(self.tuned, out, precision, self.label)
        if words:
            written.paths += export.write_words(rest, beside)
            console.say("learned words are in files of their own, for an embeddings folder")
        return written


def adapters(
    store: Store, refs: Sequence[str], cut: Cut | None, base: str | None
) -> tuple[Source, Ground | None, float]:
    """The sum of adapters as one source, the base if one is named, and what the cut keeps."""
    ground = sources.ground(bases.find(base)) if base else None
    found = [sources.find(store, ref, ground.blocks if ground else Blocks()) for ref in refs]
    for source in found if ground else ():
        assert ground
        ground.check(source)
    merged, kept = together(found, cut, ground)
    words = {word: vectors for source in found for word, vectors in source.words.items()}
    if len(words) < sum(len(source.words) for source in found):
        raise Usage("two of the adapters have the same word", fix="leave one of them out")
    label = ", ".join(f"{s.label}@{s.weight:g}" for s in found)
    said = {"modelspec.merged_from": label}
    facts = next((source.facts for source in found if source.facts), {})
    return Source(label, "merged", merged, words, said, facts=facts), ground, kept


def into(model: Folder | Single | Tuned, adapters: Sequence[Source], ground: Ground) -> Tuned:
    """The model with every adapter added to its weights, each as strong as its source says.

    Nothing is read or computed here but headers: a tensor is changed when it is written. The sum is
    in fp32 and cast once. Usage when an adapter does not fit.
    """
    wanted: dict[tuple[str, str], Weighted] = defaultdict(list)
    for source in adapters:
        ground.check(source)
        for part, modules in source.adapter.items():
            for module, update in modules.items():
                wanted[part, module].append((update, source.weight))
    own: dict[str, dict[str, Readable]] = defaultdict(dict)
    for (part, module), updates in wanted.items():
        name = f"{module}.weight"
        own[part][name] = Changed(models.named(model, part)[name], partial(_add, updates))
    if isinstance(model, Tuned):
        parts = model.own.keys() | own.keys()
        return Tuned(model.base, {p: {**model.own.get(p, {}), **own.get(p, {})} for p in parts})
    return Tuned(model, dict(own))


def _add(updates: Weighted, stored: Tensor) -> Tensor:
    """W + the sum of weight * delta W, in fp32."""
    base = stored.float()
    total = base.clone()
    for update, weight in updates:
        total += weight * lora.delta(update, base)
    return total


def together(
    adapters: Sequence[Source], cut: Cut | None = None, ground: Ground | None = None
) -> tuple[Adapter, float]:
    """The sum of adapters as one, and the share of its squared norm that the `cut` keeps.

    Without a cut it is exact, of the sum of their ranks. DoRA needs the base, and a cut, since what
    it adds is of full rank.
    """
    _check_bases(adapters)
    wanted: dict[str, dict[str, Weighted]] = defaultdict(lambda: defaultdict(list))
    for source in adapters:
        for part, modules in source.adapter.items():
            for module, update in modules.items():
                wanted[part][module].append((update, source.weight))
    merged: Adapter = {}
    kept = Kept()
    for part, summands in wanted.items():
        merged[part] = {
            module: kept.add(*_sum(f"{part}.{module}", updates, cut, ground))
            for module, updates in summands.items()
        }
    return merged, kept.share


def _sum(
    name: str, parts: Weighted, cut: Cut | None, ground: Ground | None
) -> tuple[LoraWeights, float]:
    if any(update.magnitude is not None for update, _ in parts):
        if ground is None or cut is None:
            raise Usage(
                f"{name} has a DoRA, whose change depends on the base and is of full rank",
                fix="name the base and how much to keep: --base NAME --rank N",
            )
        weight = ground.weight(*name.split(".", 1)).float()
        change = sum((w * lora.delta(u, weight) for u, w in parts), weight.new_zeros(()))
        return lowrank.factorise(change, cut)
    summed = lowrank.concatenate([(update.factors(), weight) for update, weight in parts])
    return lowrank.truncate(summed, cut) if cut else (summed, 1.0)


class Kept:
    """How much of all squared norms is kept."""

    def __init__(self) -> None:
        self._kept = self._all = 0.0

    def add(self, update: LoraWeights, energy: float) -> LoraWeights:
        norm = float(update.change().double().square().sum())
        self._kept += norm
        self._all += norm / energy if energy else 0.0
        return update

    @property
    def share(self) -> float:
        return self._kept / self._all if self._all else 1.0


def resize(source: Source, cut: Cut) -> tuple[Adapter, float]:
    """The adapter within a cut, module by module; a DoRA keeps its magnitudes."""
    if not source.adapter:
        raise Usage(f"{source.label} is only a word, which has no rank")
    kept = Kept()
    found: Adapter = {
        part: {
            module: kept.add(*lowrank.truncate(update.factors(), cut))
            for module, update in modules.items()
        }
        for part, modules in source.adapter.items()
    }
    return found, kept.share


def _check_bases(adapters: Sequence[Source]) -> None:
    """Usage when adapters are for different bases: their sum would be for none."""
    known = {source.label: source.base for source in adapters if source.base}
    if len(set(known.values())) > 1:
        said = ", ".join(f"{label} is for {target.NAMES[base]}" for label, base in known.items())
        raise Usage("the adapters are for different bases", why=said)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for source in adapters:
        for name, shape in lora.signature(source.adapter).items():
            label, other = shapes.setdefault(name, (source.label, shape))
            if _size(other) != _size(shape):
                why = f"{name} is {other} in {label} and {shape} in {source.label}"
                raise Usage("the adapters are for different bases", why=why)


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])
