"""--from: the adapter that a run goes on from, and photos of its own that keep it in mind.

What it knows stays: its updates and words are where training starts, its identifiers keep their
words, and the photos it was made from are shown again among the new ones (rehearsal, as Robins,
"Catastrophic forgetting, rehearsal and pseudorehearsal", 1995, calls it).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import bases, console, fsops, plugins, recipe
from dreamtune.artifacts import Artifact
from dreamtune.errors import Usage
from dreamtune.formats.ldm import Blocks
from dreamtune.methods import Concept, Start
from dreamtune.recipe import Chosen
from dreamtune.settings import Train
from dreamtune.stages import sources
from dreamtune.stages.sets import PhotoSet, whole
from dreamtune.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.bases import Found
    from dreamtune.families import Family

FINEST = 100  # largest factor by which a photo is repeated, to meet the share of replay


@dataclass(frozen=True)
class Origin:
    """An adapter of the store, or (without artifact) a file of any program."""

    source: sources.Source
    artifact: Artifact | None = None
    file: Path | None = None

    @property
    def label(self) -> str:
        return self.source.label

    @property
    def names(self) -> list[str]:
        """What it is called: "rex+tom" was made of two."""
        return self.artifact.name.split("+") if self.artifact else []

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of what training starts from."""
        if self.artifact:
            return self.artifact.id
        assert self.file
        files = sorted(self.file.rglob("*.safetensors")) if self.file.is_dir() else [self.file]
        return " ".join(fsops.hash_file(file) for file in files)

    @property
    def parents(self) -> list[str]:
        return [self.artifact.id] if self.artifact else []

    @property
    def concepts(self) -> list[Concept]:
        """What it taught; a file does not say."""
        return [
            Concept(c["identifier"], c["class_word"], self.source.name, c["bindings"])
            for c in self.source.facts.get("concepts", [])
        ]

    def photos(self, store: Store) -> list[PhotoSet]:
        """The photos that it was made from, as far as the store still has them."""
        if not self.artifact:
            return []
        preps = {prep.id: prep for prep in store.list("prep")}
        said = self.artifact.recipe.get("photos", [])
        pairs = [*zip(said, self.artifact.parents, strict=False)]
        if gone := {one["identifier"] for one, id in pairs if id not in preps}:
            console.warn(f"the photos of {' and '.join(sorted(gone))} are gone: it may fade")
        return [
            dataclasses.replace(
                whole(preps[id]),
                identifier=one["identifier"],
                class_word=one["class_word"],
                weight=one["weight"],
                replay=True,
            )
            for one, id in pairs
            if id in preps
        ]

    def check(self, base: Found) -> None:
        """Say so when it was trained on a base with other weights, which may be meant."""
        own = self.source.facts.get("base_hash")
        if own and own != base.fingerprint():
            console.warn(f"{self.label} was trained on other weights than {base.name}")

    def start(self, family: Family, concepts: Sequence[Concept]) -> Start:
        """Where training starts. Usage when it is for another family or its words are unclear."""
        own = self.source.facts.get("family", family.name)
        if own != family.name:
            raise Usage(
                f"{self.label} is for {own} models",
                why=f"{family.base} is a {family.name} model",
                fix=f"use its own base: --base {self.source.facts['base']}",
            )
        return Start(self.label, self.source.adapter, self._words(concepts))

    def _words(self, concepts: Sequence[Concept]) -> dict[str, dict[str, Tensor]]:
        """The rows of its words, by identifier."""
        words = self.source.words
        if not words or self.artifact:
            return {c.identifier: words[_key(c, words)] for c in self.concepts if words}
        if len(words) > 1 or len(concepts) > 1:
            raise Usage(
                f"{self.label} has {', '.join(words)}, and {len(concepts)} concepts are learned",
                why="which is which cannot be known",
                fix="go on from a file with one word, with photos of one concept",
            )
        return {concepts[0].identifier: next(iter(words.values()))}


def _key(concept: Concept, words: sources.Words) -> str:
    """What an adapter of ours calls the word of a concept: by its token, or by its file."""
    token = concept.bindings[0]["word"].split()[0].strip("<>")
    names = token, f"{concept.name}-{concept.identifier.strip('[]')}", concept.name
    return next(name for name in names if name in words)


def find(store: Store, train: Train) -> Origin | None:
    """The adapter that `train.start` names, if any; on which base it is said when it is its own."""
    if not train.start:
        return None
    if path := sources.file_of(train.start):
        return Origin(sources.of_file(path, _blocks(train.base)), file=path)
    artifact = store.resolve(train.start, "adapter")
    return Origin(sources.find(store, str(artifact.path)), artifact)


def _blocks(base: str) -> Blocks:
    """Of the base's UNet, by which SDXL's files number it."""
    found = bases.find(base)
    if isinstance(found, bases.Tiny) or "unet" not in found.parts:
        return Blocks()
    return Blocks.of(found.config("unet"))


def settle(origin: Origin, train: Train, method: Chosen) -> tuple[Train, Chosen]:
    """The settings with what the adapter decides. Usage when something else was asked for."""
    _check_method(origin, method)
    usual = Train()
    if train.base == usual.base and (base := origin.source.facts.get("base", train.base)) != (
        usual.base
    ):
        console.say(f"on {base}, the base of {origin.label} (--base)")
        train = dataclasses.replace(train, base=base)
    label = origin.label if origin.artifact else train.start
    decided = _decided(origin, method)
    for name, value in decided.items():
        asked = getattr(method.options, name)
        if asked not in (value, getattr(type(method.options)(), name)):
            raise Usage(
                f"--{name.replace('_', '-')} {_shown(asked)} does not fit {origin.label}",
                why=f"its {name.replace('_', ' ')} is {_shown(value)}",
                fix="leave it out",
            )
    options = dataclasses.replace(method.options, **decided)
    shape = ", ".join(f"{k.replace('_', ' ')} {_shown(v)}" for k, v in decided.items() if v)
    console.say(f"going on from {origin.label}: {shape}")
    return dataclasses.replace(train, start=label), Chosen(method.name, options)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()


def _check_method(origin: Origin, method: Chosen) -> None:
    own = origin.source.facts.get("method") or ("lora" if origin.source.adapter else "embedding")
    if not getattr(plugins.load(recipe.METHODS, own).Method, "goes_on", False):
        raise Usage(f"{origin.label} is by {own}, which cannot be gone on with")
    if not getattr(plugins.load(recipe.METHODS, method.name).Method, "goes_on", False):
        raise Usage(f"--method {method.name} cannot start from an adapter", fix=f"--method {own}")
    if own != method.name:
        raise Usage(
            f"{origin.label} is by {own}, not by {method.name}", fix=f"go on with --method {own}"
        )


def _decided(origin: Origin, method: Chosen) -> dict[str, Any]:
    """The options that say what an adapter looks like: its own."""
    module = plugins.load(recipe.METHODS, method.name)
    facts = origin.source.facts
    if facts:
        own = module.Options(**{k: _tuple(v) for k, v in facts["options"].items()})
        return {name: getattr(own, name) for name in module.Method.shape}
    return dict(module.Method.shape_of(origin.source.adapter, origin.source.words))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def renamed(origin: Origin, sets: Sequence[PhotoSet], refs: Sequence[str]) -> list[PhotoSet]:
    """New photos under identifiers of their own: the next free one where the adapter has theirs.

    Photos of the name that it was made from, and those that are said to be ("tom as V01"), go on
    with what it has learned.
    """
    taken = {concept.identifier for concept in origin.concepts}
    meant = [" as " in ref for ref in refs] or [False] * len(sets)
    found = []
    for one, said in zip(sets, meant, strict=True):
        if one.identifier in taken and not said and one.prep.name not in origin.names:
            new = next(name for i in range(1, 1000) if (name := f"[V{i:02}]") not in taken)
            number = one.identifier.strip("[]")
            console.say(
                f"{one.prep.name} is {new}, since {origin.label} has {one.identifier} "
                f"('{one.prep.name} as {number}' goes on with that one)"
            )
            one = dataclasses.replace(one, identifier=new)
            taken.add(new)
        found.append(one)
    return found


def replayed(sets: Sequence[PhotoSet], old: Sequence[PhotoSet], share: float) -> list[PhotoSet]:
    """New photos and, as `share` of what is shown, the old ones that are not among them."""
    seen = {(one.identifier, sample.sha256) for one in sets for sample in one.samples()}
    kept = [
        dataclasses.replace(one, without=frozenset(s for i, s in seen if i == one.identifier))
        for one in old
    ]
    kept = [one for one in kept if one.samples()]
    if not kept or not share:
        return [*sets]
    new = sum(one.repeats * len(one.samples()) for one in sets)
    past = sum(len(one.samples()) for one in kept)
    ratio = Fraction(share / (1 - share) * new / past).limit_denominator(FINEST)
    ratio = max(ratio, Fraction(1, FINEST))
    again, fresh = ratio.numerator, ratio.denominator
    console.say(f"{past} photos that it knows are shown again, {share:.0%} of all (--replay)")
    return [
        *(dataclasses.replace(one, repeats=one.repeats * fresh) for one in sets),
        *(dataclasses.replace(one, repeats=again) for one in kept),
    ]
