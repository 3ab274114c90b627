"""Adapters as sampling names them: by reference, or by the identifier that a prompt speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreamtune import console
from dreamtune.artifacts import Artifact
from dreamtune.errors import NotFound, Usage
from dreamtune.methods import Concept
from dreamtune.names import parse_ref
from dreamtune.settings import IDENTIFIER
from dreamtune.stages import sources
from dreamtune.stages.foreign import Foreign
from dreamtune.stages.trained import Trained
from dreamtune.store import Store

if TYPE_CHECKING:
    from dreamtune.bases import Found
    from dreamtune.families import Family
    from dreamtune.families._text import TextStack

NONE = "none"


class Adapter(Protocol):
    """What is put into a base: an adapter of the store (Trained) or a file of any origin (Foreign).

    alias:  an identifier other than its own, for one with a single concept
    weight: how strong
    step:   of its training; None is the last
    """

    @property
    def alias(self) -> str | None: ...
    @property
    def weight(self) -> float: ...
    @property
    def step(self) -> int | None: ...
    @property
    def id(self) -> str: ...  # hash of its content
    @property
    def name(self) -> str: ...  # of its files
    @property
    def label(self) -> str: ...  # in messages
    @property
    def parents(self) -> list[str]: ...  # artifacts that a picture is made from
    @property
    def facts(self) -> dict[str, Any]: ...  # adapter.json; empty for a file
    @property
    def concepts(self) -> list[Concept]: ...  # what it taught, under the names that prompts use
    @property
    def identifiers(self) -> list[str]: ...
    @property
    def trigger(self) -> str: ...  # what else a prompt should say
    @property
    def is_word(self) -> bool:
        """Whether it changes no weights: how much of it shows is a matter of attention."""

    def weighted(self, weight: float) -> Adapter: ...
    def check(self, base: Found) -> None:
        """Damaged, Usage and so on when it cannot be put in, before the base is loaded."""

    def put_in(self, family: Family) -> None: ...
    def spoken(self, identifier: str, stack: TextStack) -> str:
        """What a prompt for the user interfaces says for a concept."""

    @property
    def network_hash(self) -> str:
        """What A1111 knows a LoRA by: the hash of the bytes after the header."""

    def word_hash(self, identifier: str) -> str:
        """What A1111 knows an embedding by: the hash of the file."""


def record(adapter: Adapter) -> dict[str, Any]:
    """What a picture keeps of an adapter."""
    return {
        "id": adapter.id,
        "name": adapter.label,
        "identifiers": adapter.identifiers,
        "weight": adapter.weight,
        "step": adapter.step,
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
            _remind(prompt, adapters)
        return [adapters for _ in prompts]
    known = [(artifact, _class_words(artifact)) for artifact in store.list("adapter")]
    found = [_owners(store, prompt, known) for prompt in prompts]
    said = {(i, a.label): None for owners in found for i, a in owners.items()}
    for identifier, label in said:
        console.say(f"{identifier} is {label}")
    return [list({a.id: a for a in owners.values()}.values()) for owners in found]


def _remind(prompt: str, adapters: Sequence[Adapter]) -> None:
    """Warn of a prompt that speaks of nothing that the adapters taught."""
    names = [name for adapter in adapters for name in adapter.identifiers]
    bare = [adapter.trigger for adapter in adapters if adapter.trigger and not adapter.identifiers]
    names += [word for trigger in bare for word in trigger.split(", ")]
    if names and not any(name in prompt for name in names):
        console.warn(f"the prompt {prompt!r} does not say {' or '.join(names)}")


def _check_distinct(adapters: Sequence[Adapter]) -> None:
    """Usage when two adapters would answer to one identifier: only one of them could."""
    owners: dict[str, Adapter] = {}
    for adapter in adapters:
        for identifier in adapter.identifiers:
            other = owners.setdefault(identifier, adapter)
            if other is not adapter:
                labels = f"{other.label} and {adapter.label}"
                raise Usage(
                    f"{labels} both own {identifier}",
                    fix=f"give one another name: --with '{adapter.name} as V02'",
                )


def _named(store: Store, text: str) -> Adapter:
    """An adapter as --with names it: "rex", "rex@0.8", "rex@step=300", "rex as V02", or a file."""
    ref, _, alias = (text, "", "") if Path(text).exists() else text.partition(" as ")
    ref, options, weight = parse_ref(ref.strip())
    if unknown := options.keys() - {"step"}:
        raise Usage(
            f"--with {text!r} has an unknown option {min(unknown)!r}", fix="there is @step="
        )
    strong = 1.0 if weight is None else weight
    if path := sources.file_of(ref):
        if options:
            raise Usage(f"{ref} is a file, which has no @step=")
        file = Foreign(path)
        return Foreign(path, _alias(file.label, len(file.concepts), alias), strong)
    artifact = store.resolve(ref, "adapter")
    step = _step(artifact, options["step"]) if "step" in options else None
    known = artifact.read_json("adapter.json")["concepts"]
    return Trained(artifact, _alias(artifact.label, len(known), alias), strong, step)


def _alias(label: str, concepts: int, word: str) -> str | None:
    """The identifier of "as V02"; Usage when it is none, or there is not one concept to rename."""
    if not word:
        return None
    identifier = f"[{word.strip().strip('[]')}]"
    if not IDENTIFIER.fullmatch(identifier):
        raise Usage(f"{word.strip()!r} cannot be an identifier", fix="use letters and digits: V02")
    if concepts != 1:
        raise Usage(
            f"{label} has {concepts or 'no'} concepts, which {word.strip()!r} cannot rename",
            fix="use the identifiers that it was trained with" if concepts else "",
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
    gone_on_from = {parent for artifact, _ in fits for parent in artifact.parents}
    fits = [(a, words) for a, words in fits if a.id not in gone_on_from]
    names = {a.name for a, _ in fits}
    if len(names) > 1:
        raise _ambiguous(identifier, [a for a, _ in fits])
    ids = {a.id for a, _ in fits}
    newest = store.newest("adapter", lambda a: a.id in ids)
    assert newest
    return Trained(newest)


def _ambiguous(identifier: str, artifacts: Sequence[Artifact]) -> Usage:
    names = sorted({a.name for a in artifacts})
    return Usage(
        f"{identifier} could be {' or '.join(names)}",
        why="each of these adapters owns it",
        fix=f"say which: --with {names[0]}",
    )


def _identifiers(adapters: list[Known]) -> str:
    return ", ".join(sorted({f"{i} {word}" for _, words in adapters for i, word in words.items()}))
