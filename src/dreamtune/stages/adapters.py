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
from dreamtune.methods import Concept, Weights
from dreamtune.settings import IDENTIFIER

if TYPE_CHECKING:
    from dreamtune.families import Family

NONE = "none"


@dataclass(frozen=True)
class Adapter:
    """An adapter to put into the base: which, from which step, how strong, under which name."""

    artifact: Artifact
    alias: str | None = None  # an identifier other than its own, for an adapter of one concept
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
    def concepts(self) -> list[Concept]:
        """What it taught, under the names that prompts use."""
        return [
            Concept(name, known["class_word"], self.artifact.name, known["bindings"])
            for name, known in zip(self.identifiers, self.facts["concepts"], strict=True)
        ]

    @property
    def identifiers(self) -> list[str]:
        own = [known["identifier"] for known in self.facts["concepts"]]
        return [self.alias] if self.alias else own

    @property
    def is_word(self) -> bool:
        """Whether it changes no weights: how much of it shows is a matter of attention."""
        return bool(getattr(_method(self.facts), "is_word", False))

    def record(self) -> dict[str, Any]:
        return {
            "id": self.artifact.id,
            "name": self.artifact.label,
            "identifiers": self.identifiers,
            "weight": self.weight,
            "step": self.step,
        }


def choose(store: Store, prompts: Sequence[str], refs: Sequence[str]) -> list[list[Adapter]]:
    """The adapters of each prompt: those named, else the newest that own what it speaks of.

    prompts: without marks of strength
    """
    if list(refs) == [NONE]:
        return [[] for _ in prompts]
    if refs:
        adapters = [_named(store, ref) for ref in refs]
        _check_distinct(adapters)
        for prompt in prompts:
            names = [name for adapter in adapters for name in adapter.identifiers]
            if not any(name in prompt for name in names):
                words = " or ".join(names)
                console.warn(f"the prompt {prompt!r} does not say {words}")
        return [adapters for _ in prompts]
    known = [(artifact, _class_words(artifact)) for artifact in store.list("adapter")]
    found = [_owners(store, prompt, known) for prompt in prompts]
    said = {(i, a.artifact.label): None for owners in found for i, a in owners.items()}
    for identifier, label in said:
        console.say(f"{identifier} is {label}")
    return [list({a.artifact.id: a for a in owners.values()}.values()) for owners in found]


def _check_distinct(adapters: Sequence[Adapter]) -> None:
    """Usage when two adapters would answer to one identifier: only one of them could."""
    owners: dict[str, Adapter] = {}
    for adapter in adapters:
        for identifier in adapter.identifiers:
            other = owners.setdefault(identifier, adapter)
            if other is not adapter:
                labels = f"{other.artifact.label} and {adapter.artifact.label}"
                raise Usage(
                    f"{labels} both own {identifier}",
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
    return Adapter(artifact, _alias(artifact, alias), 1.0 if weight is None else weight, step)


def _alias(artifact: Artifact, word: str) -> str | None:
    """The identifier of "as V02"; Usage when it is none, or the adapter has several of its own."""
    if not word:
        return None
    identifier = f"[{word.strip().strip('[]')}]"
    if not IDENTIFIER.fullmatch(identifier):
        raise Usage(f"{word.strip()!r} cannot be an identifier", fix="use letters and digits: V02")
    if len(artifact.read_json("adapter.json")["concepts"]) > 1:
        raise Usage(
            f"{artifact.label} has several concepts, which {word.strip()!r} cannot rename",
            fix="use the identifiers that it was trained with",
        )
    return identifier


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


Known = tuple[Artifact, dict[str, str]]  # an adapter, and class words by identifier


def _owners(store: Store, prompt: str, adapters: list[Known]) -> dict[str, Adapter]:
    """The newest adapter for each identifier of the prompt; its class word, if said, decides."""
    identifiers = list(dict.fromkeys(IDENTIFIER.findall(prompt)))
    if not identifiers:
        raise Usage(
            f"the prompt {prompt!r} has no identifier such as [V01]",
            fix=f"put one in, or name an adapter: --with NAME (--with {NONE} for the plain base)",
        )
    # One that was trained on all of them together comes before several that were not.
    whole = [(a, words) for a, words in adapters if words.keys() >= set(identifiers)]
    return {i: _owner(store, i, prompt, whole or adapters) for i in identifiers}


def _class_words(artifact: Artifact) -> dict[str, str]:
    known = artifact.read_json("adapter.json")["concepts"]
    return {concept["identifier"]: concept["class_word"] for concept in known}


def _owner(store: Store, identifier: str, prompt: str, adapters: list[Known]) -> Adapter:
    fits = [(a, words) for a, words in adapters if identifier in words]
    if not fits:
        raise NotFound(
            f"no adapter owns {identifier}",
            why=f"{store.path} has " + (_identifiers(adapters) or "no adapter yet"),
            fix="run `dreamtune train` first, or name one: --with NAME"
            + f" (a word is weakened by ({identifier[1:-1]}:0.9))",
        )
    said = [(a, words) for a, words in fits if f"{identifier} {words[identifier]}" in prompt]
    fits = said or fits
    names = {a.name for a, _ in fits}
    if len(names) > 1:
        raise _ambiguous(identifier, [a for a, _ in fits])
    ids = {a.id for a, _ in fits}
    newest = store.newest("adapter", lambda a: a.id in ids)
    assert newest
    return Adapter(newest)


def _ambiguous(identifier: str, artifacts: Sequence[Artifact]) -> Usage:
    names = sorted({a.name for a in artifacts})
    return Usage(
        f"{identifier} could be {' or '.join(names)}",
        why="each of these adapters owns it",
        fix=f"say which: --with {names[0]}",
    )


def _identifiers(adapters: list[Known]) -> str:
    return ", ".join(sorted({f"{i} {word}" for _, words in adapters for i, word in words.items()}))


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
    files: Weights = {}
    folder = adapter.folder
    # Two levels: below them are the adapters of earlier steps.
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            files[path.relative_to(folder).as_posix()] = (tensors, file.metadata() or {})
    if not files:
        raise Damaged(f"{folder} holds no adapter", fix="see `dreamtune verify`")
    weight = 1.0 if adapter.is_word else adapter.weight
    _method(facts).load(family, adapter.concepts, files, weight)


def _method(facts: dict[str, Any]) -> Any:
    """The method that an adapter was trained by."""
    module = plugins.load(recipe.METHODS, facts["method"])
    return module.Method(module.Options(**facts["options"]))
