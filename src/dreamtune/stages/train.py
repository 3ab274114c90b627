"""train: a prep artifact to an adapter artifact."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dreamtune import bases, console, devices, families, processes, recipe
from dreamtune.artifacts import Artifact
from dreamtune.bases import Found
from dreamtune.bases.overrides import Overrides, override
from dreamtune.errors import Usage
from dreamtune.methods import Concept
from dreamtune.settings import Train
from dreamtune.stages import classes, origin, propose, resume, sets
from dreamtune.stages.origin import Origin
from dreamtune.stages.sets import PhotoSet
from dreamtune.stages.training import Training
from dreamtune.store import Store

VERSION = 1  # of what an adapter artifact holds and how it is made


@dataclass(frozen=True)
class Run:
    """One call of `train`: what is asked for, and what is known before the work."""

    store: Store
    sets: Sequence[PhotoSet]
    train: Train
    method: recipe.Chosen
    name: str
    classes: Sequence[Artifact] = ()
    origin: Origin | None = None
    resume: bool = False
    fresh: bool = False
    allow_drift: bool = False
    checkpoint_every: int = 500

    @functools.cached_property
    def base(self) -> Found:
        return override(bases.find(self.train.base), Overrides.of(self.train))

    @functools.cached_property
    def recipe(self) -> dict[str, Any]:
        """All that decides the result, the base's weights included."""
        settings = dataclasses.asdict(self.train)
        for shown in ("tracker", "tracker_dir"):
            del settings[shown]
        return {
            "name": self.name,
            "photos": [one.record() for one in self.sets],
            "base_hash": self.base.fingerprint(),
            "processes": processes.count(),
            "train": {**settings, **bases.named(self.base)},
            "start": self.origin.fingerprint if self.origin else None,
            "method": {"name": self.method.name, **dataclasses.asdict(self.method.options)},
        }

    @functools.cached_property
    def key(self) -> str:
        return self.store.key("adapter", VERSION, self.recipe, self.parents)

    @property
    def parents(self) -> list[str]:
        made_from = [*(one.prep for one in self.sets), *self.classes]
        return [*(one.id for one in made_from), *(self.origin.parents if self.origin else ())]

    @property
    def concepts(self) -> list[Concept]:
        """What is learned, each once, and what the adapter knows that it goes on from."""
        old = {c.identifier: c for c in self.origin.concepts} if self.origin else {}
        words = {one.identifier: one.class_word for one in self.sets}
        words |= {name: c.class_word for name, c in old.items() if name not in words}
        bindings = {name: c.bindings for name, c in old.items()}
        return [Concept(name, w, self.name, bindings.get(name, [])) for name, w in words.items()]


@dataclass(frozen=True)
class Plan:
    """What a run is to do, with what its photos and the adapter it goes on from decide."""

    sets: Sequence[PhotoSet]
    train: Train
    method: recipe.Chosen
    origin: Origin | None

    @property
    def name(self) -> str:
        """Of the adapter: those of its photos, after that of what it goes on from."""
        before = self.origin.names if self.origin else []
        own = [one.prep.name for one in self.sets if not one.replay]
        return "+".join(dict.fromkeys([*before, *own]) if before else own)


def plan(store: Store, train: Train, method: recipe.Chosen, refs: Sequence[str]) -> Plan:
    """Photos by reference, and settings filled in."""
    found, start = sets.find(store, refs), origin.find(store, train)
    if start:
        train, method = origin.settle(start, train, method)
        found = origin.renamed(start, found, refs)
        found = origin.replayed(found, start.photos(store), train.replay)
    train, method = propose.fill(train, method, found)
    return Plan(found, train, method, start)


def run(ask: Run) -> Artifact:
    """Train, or find that it was done before."""
    processes.join(devices.choose(ask.train.device))
    with processes.in_turn():
        ask = with_class_images(ask)
    done = ask.store.find(ask.key)
    if done:
        console.say(f"{done.label} is up to date")
        return ask.store.reuse(done) if processes.first() else done
    artifact = _lead(ask) if processes.first() else _follow(ask)
    processes.leave()
    return artifact


def _lead(ask: Run) -> Artifact:
    """The first process, or the only one: checks, decides where to go on, and writes."""
    families.of(ask.base)  # refuses what is no family's
    bases.remember(ask.base)
    if ask.origin:
        ask.origin.check(ask.base)
    for artifact in [*(one.prep for one in ask.sets), *ask.classes]:
        artifact.check(deep=True)
    with ask.store.draft("adapter", ask.name, ask.key, ask.recipe, ask.parents, keep=True) as draft:
        checkpoint = processes.share(resume.point(ask, draft))
        finished = Training(ask, draft, checkpoint).run()
    processes.wait()
    assert finished
    return finished


def _follow(ask: Run) -> Artifact:
    """Another process: computes what the first decides."""
    Training(ask, None, processes.share(None)).run()
    processes.wait()
    finished = ask.store.find(ask.key)
    assert finished
    return finished


def with_class_images(ask: Run) -> Run:
    """The run with the class images that it asks for, which are made on first use."""
    if ask.train.prior != "images" or ask.classes:
        return ask
    photos = sum(len(one.samples()) for one in ask.sets)
    count = ask.train.num_class_images or min(200, max(40, 10 * photos))
    words = [*dict.fromkeys(one.class_word for one in ask.sets)]
    given = ask.train.class_images
    if given and len(words) > 1:
        raise Usage(
            f"--class-images {given} cannot show both {' and '.join(words)}",
            fix="leave it out, and the base makes them",
        )
    images = [classes.ensure(ask.store, ask.train, word, count) for word in words]
    # A label, since a folder's path means nothing elsewhere.
    train = dataclasses.replace(ask.train, class_images=images[0].label if given else None)
    return dataclasses.replace(ask, train=train, classes=images)
