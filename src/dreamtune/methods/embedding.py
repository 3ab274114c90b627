"""Textual inversion (Gal et al., arXiv:2208.01618): one new word, and nothing else, is learned."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamtune.errors import Usage
from dreamtune.methods import Concept, Facts, Files, Group, Weights, about
from dreamtune.settings import option

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.families import Family
    from dreamtune.families._text import TextStack


@dataclass(frozen=True)
class Options:
    """The new token's row starts as the mean of an initialiser's rows."""

    init_word: str | None = option(
        None,
        alias=("--initializer-token",),
        help="word whose embedding the new token starts from (default: the class word)",
    )


class Method:
    """A new token in each text encoder; these run in the loop, so captions are not cached."""

    learning_rate = 5e-3
    views = 200

    def __init__(self, options: Options) -> None:
        self.options = options

    def live(self) -> set[str]:
        return {"denoiser", "text"}

    def attach(
        self, family: Family, concepts: Sequence[Concept], seed: int, teacher: bool = False
    ) -> None:
        """Add the tokens to every tokenizer, their rows a trainable fp32 parameter."""
        import torch

        rows = {}
        for stack in family.text:
            table = stack.encoder.get_input_embeddings().weight
            starts = [table[self._start(stack, concept)].mean(0) for concept in concepts]
            rows[stack.name] = torch.stack(starts).detach().float()
        self._insert(family, concepts, rows)

    def _start(self, stack: TextStack, concept: Concept) -> list[int]:
        """Token ids of the word that a new token starts from."""
        ids = stack.ids(self.options.init_word or concept.class_word)
        if not ids:
            raise Usage("the initialiser is empty", fix="give --init-word a word")
        return ids

    def teacher(self, family: Family) -> AbstractContextManager[None]:
        """The base is never changed: a prompt without the new word is all it takes."""
        return nullcontext()

    def groups(self) -> list[Group]:
        # Decay would pull the word towards zero, away from where the other words are.
        return [Group("tokens", {n: t.rows for n, t in self._tables.items()}, weight_decay=0.0)]

    def export(self, family: Family, concepts: Sequence[Concept], facts: Facts) -> Files:
        """A file for the user interfaces by concept, and one for `load_textual_inversion`."""
        from dreamtune.formats import embeddings, modelspec

        base = modelspec.BASES[family.spec]
        files: Files = {}
        learned: dict[str, Tensor] = {}
        for i, concept in enumerate(concepts):
            rows = {
                stack.part: self._tables[stack.name].rows[i : i + 1].detach().cpu().clone()
                for stack in family.text
            }
            tensors = embeddings.dump(rows)
            body, said = modelspec.body_sha256(tensors), about([concept], facts)
            metadata = modelspec.modelspec(base, "textual-inversion", body, **said)
            files[_file(concept, concepts)] = tensors, metadata
            learned |= embeddings.dump_diffusers(_word(concept), rows)
        return {**files, "learned_embeds.safetensors": (learned, {})}

    def load(
        self, family: Family, concepts: Sequence[Concept], files: Weights, weight: float
    ) -> None:
        """Add the learned words to the tokenizers; `weight` scales their rows."""
        import torch

        from dreamtune.formats import embeddings

        stored = [embeddings.parse(files[_file(c, concepts)][0])[1] for c in concepts]
        parts = {stack.name: stack.part for stack in family.text}
        if stored[0].keys() != set(parts.values()):
            raise Usage(
                f"{concepts[0].name} has embeddings for {', '.join(sorted(stored[0]))}",
                why=f"this base has {', '.join(parts.values())}",
                fix="use the base it was trained on",
            )
        rows = {
            name: weight * torch.cat([found[part].float() for found in stored])
            for name, part in parts.items()
        }
        self._insert(family, concepts, rows)

    def _insert(self, family: Family, concepts: Sequence[Concept], rows: dict[str, Tensor]) -> None:
        from dreamtune.families._text import TokenRows

        family.denoiser.requires_grad_(False)
        self._tables = {}
        for stack in family.text:
            ids = [stack.add_word(concept.identifier, _word(concept)) for concept in concepts]
            old = stack.encoder.get_input_embeddings()
            table = TokenRows(old, rows[stack.name].to(old.weight.device), ids[0])
            stack.encoder.set_input_embeddings(table)
            self._tables[stack.name] = table


def _file(concept: Concept, concepts: Sequence[Concept]) -> str:
    """NAME.safetensors, or one file for each of several: NAME-V01.safetensors."""
    mark = f"-{concept.identifier.strip('[]')}" if len(concepts) > 1 else ""
    return f"{concept.name}{mark}.safetensors"


def _word(concept: Concept) -> str:
    """The token to add: "<dog-V01>" style, which is in no vocabulary."""
    return f"<{concept.name}-{concept.identifier.strip('[]')}>".lower()
