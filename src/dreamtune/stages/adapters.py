"""Adapters as sampling names them: by reference, or by the identifier that a prompt speaks of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import console, plugins, recipe
from dreamtune.artifacts import Artifact, Store, parse_ref
from dreamtune.errors import Damaged, NotFound, Usage
from dreamtune.methods import Concept, Files
from dreamtune.settings import IDENTIFIER

if TYPE_CHECKING:
    from dreamtune.families import Family

NONE = "none"


@dataclass(frozen=True)
class Adapter:
    """An adapter to put into the base: which, from which step, how strong, under which name."""

    artifact: Artifact
    identifier: str
    weight: float = 1.0
    step: int | None = None

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        return dict(self.artifact.read_json("adapter.json"))

    @property
    def folder(self) -> Path:
        at = self.artifact.path
        return at if self.step is None else at / "steps" / f"{self.step:06d}"

    @property
    def concept(self) -> Concept:
        class_word, bindings = self.facts["class_word"], self.facts["bindings"]
        return Concept(self.identifier, class_word, self.artifact.name, bindings)

    def record(self) -> dict[str, Any]:
        return {
            "id": self.artifact.id,
            "name": self.artifact.label,
            "identifier": self.identifier,
            "weight": self.weight,
            "step": self.step,
        }


def choose(store: Store, prompts: Sequence[str], refs: Sequence[str]) -> list[Adapter]:
    """The adapters to use: those named, else the newest that own what the prompts speak of."""
    if list(refs) == [NONE]:
        return []
    if refs:
        adapters = [_named(store, ref) for ref in refs]
        _check_distinct(adapters)
        for prompt in prompts:
            if not any(a.identifier in prompt for a in adapters):
                words = " or ".join(a.identifier for a in adapters)
                console.warn(f"the prompt {prompt!r} does not say {words}")
        return adapters
    found: dict[str, Adapter] = {}
    for prompt in prompts:
        for adapter in _owners(store, prompt):
            other = found.setdefault(adapter.identifier, adapter)
            if other.artifact.id != adapter.artifact.id:
                raise _ambiguous(adapter.identifier, [other.artifact, adapter.artifact])
    return list(found.values())


def _check_distinct(adapters: Sequence[Adapter]) -> None:
    """Usage when two adapters would answer to one identifier: only one of them could."""
    owners: dict[str, Adapter] = {}
    for adapter in adapters:
        other = owners.setdefault(adapter.identifier, adapter)
        if other is not adapter:
            labels = f"{other.artifact.label} and {adapter.artifact.label}"
            raise Usage(
                f"{labels} both own {adapter.identifier}",
                fix=f"give one another name: --with '{adapter.artifact.name} as V02'",
            )


def _named(store: Store, text: str) -> Adapter:
    """An adapter as --with names it: "rex", "rex@0.8", "rex@step=300", "rex as V02"."""
    ref, _, alias = text.partition(" as ")
    ref, options, weight = parse_ref(ref.strip())
    artifact = store.resolve(ref, "adapter")
    if unknown := options.keys() - {"step"}:
        raise Usage(
            f"--with {text!r} has an unknown option {min(unknown)!r}", fix="there is @step="
        )
    step = _step(artifact, options["step"]) if "step" in options else None
    own = artifact.read_json("adapter.json")["identifier"]
    identifier = f"[{alias.strip().strip('[]')}]" if alias else own
    if alias and not IDENTIFIER.fullmatch(identifier):
        raise Usage(f"{alias.strip()!r} cannot be an identifier", fix="use letters and digits: V02")
    return Adapter(artifact, identifier, 1.0 if weight is None else weight, step)


def _step(artifact: Artifact, text: str) -> int | None:
    """A step whose adapter was kept; the last one is the adapter itself."""
    kept = sorted(int(p.name) for p in (artifact.path / "steps").glob("*"))
    last = int(artifact.read_json("adapter.json")["steps"])
    if not text.isdecimal() or int(text) not in [*kept, last]:
        raise NotFound(
            f"{artifact.label} has no step {text}",
            why="it has " + ", ".join(str(step) for step in [*kept, last]),
            fix="`train --save-every N` keeps more",
        )
    return int(text) if int(text) in kept else None


def _owners(store: Store, prompt: str) -> list[Adapter]:
    """The newest adapter for each identifier of the prompt; its class word, if said, decides."""
    identifiers = list(dict.fromkeys(IDENTIFIER.findall(prompt)))
    if not identifiers:
        raise Usage(
            f"the prompt {prompt!r} has no identifier such as [V01]",
            fix=f"put one in, or name an adapter: --with NAME (--with {NONE} for the plain base)",
        )
    adapters = [(a, a.read_json("adapter.json")) for a in store.list("adapter")]
    return [_owner(store, identifier, prompt, adapters) for identifier in identifiers]


def _owner(
    store: Store, identifier: str, prompt: str, adapters: list[tuple[Artifact, dict[str, Any]]]
) -> Adapter:
    fits = [(a, facts) for a, facts in adapters if facts["identifier"] == identifier]
    if not fits:
        raise NotFound(
            f"no adapter owns {identifier}",
            why=f"{store.path} has " + (_identifiers(adapters) or "no adapter yet"),
            fix="run `dreamtune train` first, or name one: --with NAME",
        )
    said = [(a, facts) for a, facts in fits if f"{identifier} {facts['class_word']}" in prompt]
    fits = said or fits
    names = {a.name for a, _ in fits}
    if len(names) > 1:
        raise _ambiguous(identifier, [a for a, _ in fits])
    ids = {a.id for a, _ in fits}
    newest = store.newest("adapter", lambda a: a.id in ids)
    assert newest
    console.say(f"{identifier} is {newest.label}")
    return Adapter(newest, identifier)


def _ambiguous(identifier: str, artifacts: Sequence[Artifact]) -> Usage:
    names = sorted({a.name for a in artifacts})
    return Usage(
        f"{identifier} could be {' or '.join(names)}",
        why="each of these adapters owns it",
        fix=f"say which: --with {names[0]}",
    )


def _identifiers(adapters: list[tuple[Artifact, dict[str, Any]]]) -> str:
    return ", ".join(sorted({f"{f['identifier']} {f['class_word']}" for _, f in adapters}))


def put_in(family: Family, adapter: Adapter) -> None:
    """Load an adapter's files and let its method put them into the base."""
    from safetensors import safe_open

    facts = adapter.facts
    if facts["family"] != family.name:
        raise Usage(
            f"{adapter.artifact.label} is for {facts['family']} models",
            why=f"{family.base} is a {family.name} model",
            fix=f"use its own base: --base {facts['base']}",
        )
    files: Files = {}
    for path in sorted(adapter.folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            files[path.name] = (tensors, file.metadata() or {})
    if not files:
        raise Damaged(f"{adapter.folder} holds no adapter", fix="see `dreamtune verify`")
    module = plugins.load(recipe.METHODS, facts["method"])
    method = module.Method(module.Options(**facts["options"]))
    method.load(family, adapter.concept, files, adapter.weight)
