"""Textual inversion (Gal et al., arXiv:2208.01618): one new word, and nothing else, is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamtune.errors import Usage
from dreamtune.methods import Concept, Facts, Files, Group
from dreamtune.settings import option

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.families import Family


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

    def __init__(self, options: Options) -> None:
        self.options = options

    def live(self) -> set[str]:
        return {"denoiser", "text"}

    def attach(self, family: Family, concept: Concept, seed: int) -> None:
        """Add the token to every tokenizer, its row a trainable fp32 parameter."""
        rows = {}
        for stack in family.text:
            ids = stack.ids(self.options.init_word or concept.class_word)
            if not ids:
                raise Usage("the initialiser is empty", fix="give --init-word a word")
            table = stack.encoder.get_input_embeddings().weight
            rows[stack.name] = table[ids].detach().float().mean(0, keepdim=True)
        self._insert(family, concept, rows)

    def groups(self) -> list[Group]:
        # Decay would pull the word towards zero, away from where the other words are.
        return [Group("tokens", {n: t.rows for n, t in self._tables.items()}, weight_decay=0.0)]

    def export(self, family: Family, concept: Concept, facts: Facts) -> Files:
        """One file for the user interfaces, one for `load_textual_inversion`."""
        from dreamtune.formats import embeddings, modelspec

        rows = {n: t.rows.detach().cpu().clone() for n, t in self._tables.items()}
        tensors = embeddings.dump(rows)
        body, base = modelspec.body_sha256(tensors), modelspec.BASES[family.spec]
        metadata = modelspec.modelspec(base, "textual-inversion", body, **concept.about(facts))
        return {
            f"{concept.name}.safetensors": (tensors, metadata),
            "learned_embeds.safetensors": (embeddings.dump_diffusers(_word(concept), rows), {}),
        }

    def load(self, family: Family, concept: Concept, files: Files, weight: float) -> None:
        """Add the learned word to the tokenizers; `weight` scales its row."""
        from dreamtune.formats import embeddings

        _, stored = embeddings.parse(files[f"{concept.name}.safetensors"][0])
        names = [stack.name for stack in family.text]
        if sorted(stored) != sorted(names):
            raise Usage(
                f"{concept.name} has embeddings for {', '.join(sorted(stored))}",
                why=f"this base has {', '.join(names)}",
                fix="use the base it was trained on",
            )
        self._insert(family, concept, {n: weight * rows.float() for n, rows in stored.items()})

    def _insert(self, family: Family, concept: Concept, rows: dict[str, Tensor]) -> None:
        from dreamtune.families._text import TokenRows

        family.denoiser.requires_grad_(False)
        self._tables = {}
        for stack in family.text:
            stack.add_word(concept.identifier, _word(concept))
            old = stack.encoder.get_input_embeddings()
            table = TokenRows(old, rows[stack.name].to(old.weight.device))
            stack.encoder.set_input_embeddings(table)
            self._tables[stack.name] = table


def _word(concept: Concept) -> str:
    """The token to add: "<dog-V01>" style, which is in no vocabulary."""
    return f"<{concept.name}-{concept.identifier.strip('[]')}>".lower()
