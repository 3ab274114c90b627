"""Which words identifiers stand for: chosen for training, and made again for sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreamtune.methods import Concept

if TYPE_CHECKING:
    from dreamtune.families import Family
    from dreamtune.families._text import TextStack


def bind(family: Family, concepts: Sequence[Concept]) -> None:
    """Let every tokenizer choose a reserved or rare word for each identifier that has none."""
    from dreamtune.families import _text

    bind_again(family, concepts)
    for concept in concepts:
        _text.bind(family.text, concept.identifier)


def bind_again(family: Family, concepts: Sequence[Concept]) -> None:
    """Let identifiers stand for the words that they stood for in training."""
    for concept in concepts:
        for binding in concept.bindings:
            stack = next(s for s in family.text if s.name == binding["stack"])
            stack.bind(concept.identifier, binding["word"])


def clip_stacks(family: Family) -> list[TextStack]:
    """The text encoders that are trained when text is: CLIP's. T5 is as large as a denoiser."""
    return [s for s in family.text if s.encoder.config.model_type == "clip_text_model"]
