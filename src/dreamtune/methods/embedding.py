"""Textual inversion (Gal et al., arXiv:2208.01618): a new word, and nothing else, is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamtune.errors import Usage
from dreamtune.methods import Concept, Facts, Files, Start, Weights, _options, _tokens, about

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.families import Family
    from dreamtune.formats.lora import Adapter
    from dreamtune.methods import Group


@dataclass(frozen=True)
class Options:
    """The new word starts as one that the base knows."""

    init_word: str | None = _options.init_word()
    vectors: int = _options.vectors()
    keep_norm: bool = _options.keep_norm()


class Method:
    """New tokens in each text encoder; these run in the loop, so captions are not cached."""

    is_word = goes_on = True
    shape = ("vectors",)
    learning_rate = _tokens.LEARNING_RATE
    views = 200

    def __init__(self, options: Options) -> None:
        self.options = options

    def live(self) -> set[str]:
        return {"denoiser", "text"}

    @staticmethod
    def shape_of(adapter: Adapter, words: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
        """The options that a file of any program decides."""
        return {"vectors": len(next(iter(next(iter(words.values())).values())))}

    def attach(
        self,
        family: Family,
        concepts: Sequence[Concept],
        seed: int,
        teacher: bool = False,
        start: Start | None = None,
    ) -> None:
        """Add the tokens to every tokenizer, their rows a trainable fp32 parameter."""
        options = self.options
        family.denoiser.requires_grad_(False)
        rows = _tokens.begin(family, concepts, options.init_word, options.vectors, start)
        self._words = _tokens.Words(family, concepts, rows, options.keep_norm)

    def teacher(self, family: Family) -> AbstractContextManager[None]:
        """The base is never changed: a prompt without the new word is all it takes."""
        return nullcontext()

    def groups(self) -> list[Group]:
        return [self._words.group()]

    def export(self, family: Family, concepts: Sequence[Concept], facts: Facts) -> Files:
        """For each concept a file for the user interfaces and one for `load_textual_inversion`."""
        from dreamtune.formats import embeddings, modelspec

        base = modelspec.BASES[family.spec]
        files = self._words.learned_embeds(concepts)
        for concept, rows in zip(concepts, self._words.rows(), strict=True):
            tensors = embeddings.dump(rows)
            body, said = modelspec.body_sha256(tensors), about([concept], facts)
            metadata = modelspec.modelspec(base, "textual-inversion", body, **said)
            files[_tokens.file(concept.name, concept, concepts)] = tensors, metadata
        return files

    def load(
        self, family: Family, concepts: Sequence[Concept], files: Weights, weight: float
    ) -> None:
        """Add the learned words to the tokenizers; `weight` scales their rows."""
        from dreamtune.formats import embeddings

        own = [files[_tokens.file(c.name, c, concepts)][0] for c in concepts]
        stored = [vectors for tensors in own for vectors in embeddings.parse(tensors).values()]
        wanted = {s.part: s.encoder.get_input_embeddings().weight.shape[1] for s in family.text}
        given = {part: vectors.shape[1] for part, vectors in stored[0].items()}
        if given != wanted:
            raise Usage(
                f"{concepts[0].name} has vectors for {_said(given)}",
                why=f"this base wants them for {_said(wanted)}",
                fix="use the base it was trained on",
            )
        rows = [{part: weight * found[part].float() for part in wanted} for found in stored]
        self._words = _tokens.Words(family, concepts, rows)


def _said(widths: dict[str, int]) -> str:
    return ", ".join(f"{part} ({width} wide)" for part, width in widths.items())
