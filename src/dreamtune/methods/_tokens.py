"""New words of a base: where they start, how long they are, and what files hold of them.

A word is one token or several (vectors): "<rex-v01>", "<rex-v01>_1", ... as diffusers'
load_textual_inversion names them. A prompt says all of them, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreamtune.errors import Usage
from dreamtune.methods import Concept, Files, Group, Start

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.families import Family
    from dreamtune.families._text import TextStack

Rows = dict[str, "Tensor"]  # TextStack.part -> (vectors, dim)
LEARNING_RATE = 5e-3


class Words:
    """One new word for each concept, in every tokenizer and text encoder of a base."""

    def __init__(
        self,
        family: Family,
        concepts: Sequence[Concept],
        rows: Sequence[Rows],
        keep_norm: bool = False,
    ) -> None:
        """rows: of each concept; keep_norm: however they are trained, they stay that long."""
        import torch

        from dreamtune.families._text import TokenRows

        self._counts = [len(next(iter(own.values()))) for own in rows]
        self._tables = {}
        for stack in family.text:
            ids = [
                stack.add_word(concept.identifier, tokens(concept, count))
                for concept, count in zip(concepts, self._counts, strict=True)
            ]
            old = stack.encoder.get_input_embeddings()
            new = torch.cat([own[stack.part] for own in rows]).to(old.weight.device)
            self._tables[stack.part] = TokenRows(old, new, ids[0], keep_norm)
            stack.encoder.set_input_embeddings(self._tables[stack.part])

    def group(self, learning_rate: float | None = None) -> Group:
        """What is trained: a parameter (n, dim) for each text encoder, all concepts in it."""
        rows = {name: table.rows for name, table in self._tables.items()}
        # Decay would pull the words towards zero, away from where the other words are.
        return Group("tokens", rows, weight_decay=0.0, learning_rate=learning_rate)

    def rows(self) -> list[Rows]:
        """The rows of each concept as they are now, copies on the CPU."""
        parts = {
            name: table.learned.detach().cpu().clone().split(self._counts)
            for name, table in self._tables.items()
        }
        return [{name: parts[name][i] for name in parts} for i in range(len(self._counts))]

    def learned_embeds(self, concepts: Sequence[Concept]) -> Files:
        """Files for `load_textual_inversion`, which reads one word from each."""
        from dreamtune.formats import embeddings

        files: Files = {}
        for concept, rows in zip(concepts, self.rows(), strict=True):
            tensors = embeddings.dump_diffusers(token(concept), rows)
            files[file("learned_embeds", concept, concepts)] = tensors, {}
        return files


def begin(
    family: Family,
    concepts: Sequence[Concept],
    word: str | None,
    vectors: int,
    start: Start | None = None,
) -> list[Rows]:
    """Rows to start from, (vectors, dim) in fp32: those that are known already, else those of
    `word`, else of the class word.
    """
    known = start.words if start else {}
    return [
        _known(family, start, known[concept.identifier])
        if start and concept.identifier in known
        else {s.part: _begin(s, word or concept.class_word, vectors) for s in family.text}
        for concept in concepts
    ]


def _known(family: Family, start: Start, rows: Rows) -> Rows:
    """Rows of an adapter, when they are as wide as the base's; Usage otherwise."""
    widths = {s.part: s.encoder.get_input_embeddings().weight.shape[1] for s in family.text}
    if {part: row.shape[1] for part, row in rows.items()} != widths:
        raise Usage(
            f"{start.name} does not fit the base {family.base}",
            why=f"its words are for {', '.join(sorted(rows))} of other widths",
            fix="use the base it is for",
        )
    return {part: row.float().clone() for part, row in rows.items()}


def _begin(stack: TextStack, word: str, vectors: int) -> Tensor:
    """A single vector is the mean of the word's pieces, as long as they are on average; several
    start from a piece each, in turn.
    """
    ids = stack.ids(word)
    if not ids:
        raise Usage("the initialiser is empty", fix="give --init-word a word")
    pieces = stack.encoder.get_input_embeddings().weight[ids].detach().float()  # (pieces, dim)
    if vectors > 1:
        return pieces[[i % len(ids) for i in range(vectors)]]
    mean = pieces.mean(0, keepdim=True)
    return mean * (pieces.norm(dim=1).mean() / mean.norm())


def file(stem: str, concept: Concept, concepts: Sequence[Concept]) -> str:
    """STEM.safetensors, or a file for each of several concepts: STEM-V01.safetensors."""
    mark = f"-{concept.identifier.strip('[]')}" if len(concepts) > 1 else ""
    return f"{stem}{mark}.safetensors"


def token(concept: Concept) -> str:
    """The first token: "<rex-v01>", which is in no vocabulary."""
    return f"<{concept.name}-{concept.identifier.strip('[]')}>".lower()


def tokens(concept: Concept, count: int) -> list[str]:
    """All tokens of a concept's word."""
    first = token(concept)
    return [first, *(f"{first}_{i}" for i in range(1, count))]
