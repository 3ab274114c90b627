"""Adapter files that this store did not make, as sampling uses them: LoRA, LyCORIS, embeddings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dreamtune import plugins, recipe
from dreamtune.bases import Tiny, hashes
from dreamtune.bases.overrides import Overridden
from dreamtune.formats import adapters, header, lora
from dreamtune.formats.ldm import Blocks
from dreamtune.methods import Concept, Weights
from dreamtune.names import slug
from dreamtune.stages import sources

if TYPE_CHECKING:
    from dreamtune.bases import Found
    from dreamtune.families import Family
    from dreamtune.families._text import TextStack


@dataclass(frozen=True)
class Foreign:
    """A .safetensors file or PEFT folder. A word that it brings is an identifier: [pip]."""

    path: Path
    alias: str | None = None
    weight: float = 1.0
    step: ClassVar[None] = None
    parents: ClassVar[list[str]] = []
    facts: ClassVar[dict[str, Any]] = {}  # what it was trained on is not known

    @functools.cached_property
    def id(self) -> str:
        """SHA-256 of the file, or of the names and hashes of a folder's files."""
        if self.path.is_file():
            return hashes.sha256(self.path)
        files = sorted(p for p in self.path.rglob("adapter_*") if p.is_file())
        told = [(p.relative_to(self.path).as_posix(), hashes.sha256(p)) for p in files]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    @property
    def name(self) -> str:
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def label(self) -> str:
        return self.path.name

    @functools.cached_property
    def _words(self) -> tuple[list[str], dict[str, str]]:
        """The words in the order of the file, and its metadata."""
        if self.path.is_dir():
            return [], {}
        words, metadata = adapters.read_words(self.path)
        return [word or self.name for word in words], metadata

    @property
    def identifiers(self) -> list[str]:
        if self.alias:
            return [self.alias]
        words = (re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-") for word in self._words[0])
        return [f"[{word or 'word'}]" for word in words]

    @property
    def concepts(self) -> list[Concept]:
        return [Concept(identifier, "", slug(self.name)) for identifier in self.identifiers]

    @functools.cached_property
    def is_word(self) -> bool:
        if self.path.is_dir():
            return False
        shapes = {key: t.shape for key, t in header.read_header(self.path).tensors.items()}
        return adapters.layout_of(shapes) == adapters.EMBEDDING

    @property
    def trigger(self) -> str:
        """What its metadata says that a prompt should say."""
        return self._words[1].get("modelspec.trigger_phrase", "")

    def weighted(self, weight: float) -> Foreign:
        return dataclasses.replace(self, weight=weight)

    def check(self, base: Found) -> None:
        """Whether it can be read and fits the base, by its files alone: before that is loaded."""
        base = base.base if isinstance(base, Overridden) else base
        if not isinstance(base, Tiny):
            ground = sources.ground(base)
            ground.check(sources.told(sources.of_file(self.path, ground.blocks)))

    def put_in(self, family: Family) -> None:
        """Add weight * delta W to the base's weights, and the words to its tokenizers."""
        unet = family.denoiser_name == "unet"
        blocks = Blocks.of(family.denoiser.config) if unet else Blocks()
        source = sources.of_file(self.path, blocks)
        models = {family.denoiser_name: family.denoiser}
        models |= {stack.part: stack.encoder for stack in family.text}
        lora.put_in(models, source.adapter, self.weight, f"{self.label} and {family.base}")
        for concept, vectors in zip(self.concepts, source.words.values(), strict=True):
            self._teach(family, concept, vectors)

    def _teach(self, family: Family, concept: Concept, vectors: dict[str, Any]) -> None:
        from dreamtune.formats import embeddings

        method = plugins.load(recipe.METHODS, "embedding")
        files: Weights = {f"{concept.name}.safetensors": (embeddings.dump(vectors), {})}
        method.Method(method.Options()).load(family, [concept], files, 1.0)

    # As the user interfaces know it.

    def spoken(self, identifier: str, stack: TextStack) -> str:
        word = self._words[0][self.identifiers.index(identifier)]
        return self.name if self.is_word and len(self._words[0]) == 1 else word.strip("<>")

    @functools.cached_property
    def network_hash(self) -> str:
        if self.path.is_dir():
            return ""
        said = self._words[1].get("sshs_model_hash")
        return said or header.body_sha256(self.path)

    def word_hash(self, identifier: str) -> str:
        return self.id
