"""Prepared photos as one training run uses them: which, under which identifier, how often."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamtune import console
from dreamtune.artifacts import Artifact
from dreamtune.errors import NotFound, Usage
from dreamtune.names import parse_ref
from dreamtune.settings import IDENTIFIER
from dreamtune.store import Store

if TYPE_CHECKING:
    from dreamtune.data.dataset import Sample

MOST = 10_000  # repeats


@dataclass(frozen=True)
class PhotoSet:
    """A prep artifact in a run. weight: of its errors; repeats: times a photo is shown for once
    elsewhere; identifier: what its captions say instead of their own; replay: it is known already;
    without: the SHA-256 of photos that are left out.
    """

    prep: Artifact
    identifier: str
    class_word: str
    weight: float = 1.0
    repeats: int = 1
    replay: bool = False
    without: frozenset[str] = frozenset()

    def record(self) -> dict[str, Any]:
        """What the run's recipe says of it; the photos themselves are known by the parent's id."""
        return {k: getattr(self, k) for k in ("identifier", "class_word", "weight", "repeats")}

    def samples(self) -> list[Sample]:
        """Its photos, with captions and weights as this run wants them."""
        from dreamtune.data import dataset

        own = _concept(self.prep)["identifier"]
        return [
            dataclasses.replace(
                sample,
                caption=sample.caption.replace(own, self.identifier),
                weight=sample.weight * self.weight,
            )
            for sample in dataset.read(self.prep.path)
            if sample.sha256 not in self.without
        ]


def find(store: Store, refs: Sequence[str]) -> list[PhotoSet]:
    """The photos that are meant: by reference, or those the store returned last."""
    if not refs:
        newest = store.newest("prep")
        if newest is None:
            raise NotFound(
                f"nothing to train on in {store.path}", fix="run `dreamtune prep FOLDER` first"
            )
        console.say(f"training on {newest.label}, the newest prep")
        return [whole(newest)]
    sets = [_named(store, ref) for ref in refs]
    _check_distinct(sets, refs)
    return sets


def whole(prep: Artifact) -> PhotoSet:
    """A prep artifact as it is."""
    concept = _concept(prep)
    return PhotoSet(prep, concept["identifier"], concept["class_word"])


def _named(store: Store, text: str) -> PhotoSet:
    """ "rex", "rex@0.5", "rex@repeats=3", "tom as V02"."""
    ref, _, alias = text.partition(" as ")
    ref, options, weight = parse_ref(ref.strip())
    found = whole(store.resolve(ref, "prep"))
    if unknown := options.keys() - {"repeats"}:
        raise Usage(f"{text!r} has an unknown option {min(unknown)!r}", fix="there is @repeats=")
    if weight is not None and weight <= 0:
        raise Usage(f"{text!r}: the weight of photos must be above 0")
    identifier = f"[{alias.strip().strip('[]')}]" if alias else found.identifier
    if not IDENTIFIER.fullmatch(identifier):
        raise Usage(f"{alias.strip()!r} cannot be an identifier", fix="use letters and digits: V02")
    return dataclasses.replace(
        found,
        identifier=identifier,
        weight=1.0 if weight is None else weight,
        repeats=_repeats(options.get("repeats", "1"), text),
    )


def _repeats(number: str, text: str) -> int:
    if not number.isdecimal() or not 1 <= int(number) <= MOST:
        raise Usage(f"{text!r}: repeats must be 1 to {MOST:,}")
    return int(number)


def _check_distinct(sets: Sequence[PhotoSet], refs: Sequence[str]) -> None:
    """Usage when two sets share an identifier by chance: " as " says that it is meant."""
    owners: dict[str, PhotoSet] = {}
    for ref, one in zip(refs, sets, strict=True):
        other = owners.setdefault(one.identifier, one)
        if other is one or " as " in ref:
            continue
        raise Usage(
            f"{other.prep.label} and {one.prep.label} are both {one.identifier}",
            why="two concepts under one name would be learned as one",
            fix=f"'{one.prep.name} as V02' for another, "
            f"'{one.prep.name} as {one.identifier.strip('[]')}' for more photos of the same",
        )


def _concept(prep: Artifact) -> dict[str, str]:
    return dict(prep.read_json("concept.json"))
