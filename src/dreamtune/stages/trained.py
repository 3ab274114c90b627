"""An adapter of the store, as sampling uses it."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import plugins, recipe
from dreamtune.artifacts import Artifact
from dreamtune.errors import Damaged, Usage
from dreamtune.formats import header
from dreamtune.methods import Concept, Weights

if TYPE_CHECKING:
    from dreamtune.bases import Found
    from dreamtune.families import Family
    from dreamtune.families._text import TextStack


@dataclass(frozen=True)
class Trained:
    """Which adapter, from which step, how strong, under which name."""

    artifact: Artifact
    alias: str | None = None  # an identifier other than its own, for an adapter of one concept
    weight: float = 1.0
    step: int | None = None

    @property
    def id(self) -> str:
        return self.artifact.id

    @property
    def name(self) -> str:
        return self.artifact.name

    @property
    def label(self) -> str:
        return self.artifact.label

    @property
    def parents(self) -> list[str]:
        return [self.artifact.id]

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        return dict(self.artifact.read_json("adapter.json"))

    @property
    def folder(self) -> Path:
        at = self.artifact.path
        return at if self.step is None else at / "steps" / f"{self.step:06d}"

    @property
    def concepts(self) -> list[Concept]:
        return [
            Concept(name, known["class_word"], self.name, known["bindings"])
            for name, known in zip(self.identifiers, self.facts["concepts"], strict=True)
        ]

    @property
    def identifiers(self) -> list[str]:
        own = [known["identifier"] for known in self.facts["concepts"]]
        return [self.alias] if self.alias else own

    @property
    def is_word(self) -> bool:
        return bool(getattr(self._method, "is_word", False))

    @property
    def trigger(self) -> str:
        return ""  # its identifiers are told from

    def weighted(self, weight: float) -> Trained:
        return dataclasses.replace(self, weight=weight)

    def check(self, base: Found) -> None:
        """Every byte."""
        self.artifact.check(deep=True)

    def put_in(self, family: Family) -> None:
        """Load its files and let its method put them into the base."""
        from safetensors import safe_open

        facts = self.facts
        if facts["family"] != family.name:
            raise Usage(
                f"{self.label} is for {facts['family']} models",
                why=f"{family.base} is a {family.name} model",
                fix=f"use its own base: --base {facts['base']}",
            )
        files: Weights = {}
        folder = self.folder
        # Two levels: below them are the adapters of earlier steps.
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                files[path.relative_to(folder).as_posix()] = (tensors, file.metadata() or {})
        if not files:
            raise Damaged(f"{folder} holds no adapter", fix="see `dreamtune verify`")
        weight = 1.0 if self.is_word else self.weight
        self._method.load(family, self.concepts, files, weight)

    @property
    def _method(self) -> Any:
        """The method that it was trained by."""
        module = plugins.load(recipe.METHODS, self.facts["method"])
        return module.Method(module.Options(**self.facts["options"]))

    # As the user interfaces know it.

    def spoken(self, identifier: str, stack: TextStack) -> str:
        word = stack.words.get(identifier, identifier)
        if self.is_word:
            return self._file(identifier).stem
        first = word.split()[0]
        return first.strip("<>") if first in stack.added else word

    @property
    def network_hash(self) -> str:
        path = self._file()
        said = header.read_header(path).metadata if path.exists() else {}
        return said.get("sshs_model_hash", "")

    def word_hash(self, identifier: str) -> str:
        place = self._file(identifier).relative_to(self.artifact.path).as_posix()
        entry = self.artifact.files.get(place)
        return str(entry["sha256"]) if entry else ""

    def _file(self, identifier: str = "") -> Path:
        """The file for the user interfaces; of several embeddings each has its own."""
        own = self.folder / f"{self.name}-{identifier.strip('[]')}.safetensors"
        return own if identifier and own.exists() else self.folder / f"{self.name}.safetensors"
