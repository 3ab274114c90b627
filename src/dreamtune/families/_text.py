"""Tokenizers with their encoders, and what an identifier such as [V01] means to each of them.

A caption keeps the identifier as typed. Each tokenizer binds it to one of its own words: a
reserved token where the base has some, else a rare word that is a single piece, as the DreamBooth
paper advises (arXiv:2208.12242, section 3.2).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dreamtune.bases import Base
from dreamtune.errors import Usage
from dreamtune.settings import IDENTIFIER

_RESERVED = re.compile(r"<id\d+>")
_RARE = re.compile(r"([a-z]{1,4})</w>")


@dataclass
class TextStack:
    """A tokenizer and its encoder. `name` is the encoder's folder in the diffusers layout."""

    name: str
    tokenizer: Any
    encoder: Any
    length: int  # tokens a prompt is padded or cut to
    words: dict[str, str] = field(default_factory=dict)  # identifier -> word

    def bind(self, identifier: str, word: str | None = None) -> str:
        """Bind an identifier to `word`, or to a free reserved or rare word; returns the word."""
        if identifier not in self.words:
            self.words[identifier] = word or self._free_word(identifier)
        return self.words[identifier]

    def add_word(self, identifier: str, word: str) -> int:
        """Bind an identifier to a word that is new to the tokenizer; returns the new token id."""
        if self.tokenizer.add_tokens([word]) != 1:
            raise Usage(
                f"{word!r} is already a token of this base", fix="choose another identifier"
            )
        self.words[identifier] = word
        return len(self.tokenizer) - 1

    def prompt(self, caption: str) -> str:
        """The caption with identifiers replaced by their words."""

        def word(match: re.Match[str]) -> str:
            return self.words.get(match[0], match[0])

        return IDENTIFIER.sub(word, caption)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids (B, length), padded and cut as the diffusers pipelines do."""
        texts = [self.prompt(caption) for caption in captions]
        return self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    def ids(self, text: str) -> list[int]:
        """Token ids of a few words, without begin, end and padding."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def record(self, identifier: str) -> dict[str, Any]:
        """What a file must say so that the binding can be made again."""
        word = self.words[identifier]
        return {
            "stack": self.name,
            "identifier": identifier,
            "word": word,
            "ids": self.ids(word),
            "tokenizer": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """Hash of the tokenizer's vocabulary, without words added since it was loaded."""
        added = set(self.words.values())
        vocabulary = sorted((t, i) for t, i in self.tokenizer.get_vocab().items() if t not in added)
        return hashlib.sha256(repr(vocabulary).encode()).hexdigest()

    def _free_word(self, identifier: str) -> str:
        """The word for an identifier. [V02] starts one word after [V01], so that adapters that were
        trained apart can be used together.
        """
        taken = set(self.words.values())
        vocabulary = self.tokenizer.get_vocab()
        reserved = sorted(t for t in vocabulary if _RESERVED.fullmatch(t))
        pieces = sorted(vocabulary.items(), key=lambda item: -item[1])  # late merges are rare words
        rare = [m[1] for t, _ in pieces if (m := _RARE.fullmatch(t))]
        rare.sort(key=len, reverse=True)
        # "sks" is the word that the field's guides, and so other people's prompts, use.
        words = [*reserved, "sks", *rare]
        number = re.search(r"\d+", identifier)
        start = max(0, int(number[0]) - 1) % len(words) if number else 0
        for word in [*words[start:], *words[:start]]:
            if word not in taken and len(self.ids(word)) == 1:
                return word
        raise Usage("the base has no free word left for another identifier")


def clip_stacks(base: Base, encoders: dict[str, Any]) -> list[TextStack]:
    """The stacks of a base: text_encoder_2 goes with tokenizer_2."""
    from transformers import CLIPTokenizer

    stacks = []
    for name, encoder in encoders.items():
        tokenizer = base.tokenizer(name.replace("text_encoder", "tokenizer"), CLIPTokenizer)
        # Released configs say 2, for which transformers pools at the largest id: a new word's.
        for module in encoder.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = tokenizer.eos_token_id
        length = int(encoder.config.max_position_embeddings)
        stacks.append(TextStack(name, tokenizer, encoder, length))
    return stacks


def pooled_arguments(text: dict[str, Tensor], negative: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encoded prompts as keyword arguments of pipelines that also take pooled ones."""
    return {
        "prompt_embeds": text["text"],
        "pooled_prompt_embeds": text["pooled"],
        "negative_prompt_embeds": negative["text"],
        "negative_pooled_prompt_embeds": negative["pooled"],
    }


class TokenRows(nn.Module):
    """A token embedding with extra rows that can be trained while the others stay as they are.

    ids below the old vocabulary size V read the frozen table (V, dim); V + i reads row i.
    """

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        super().__init__()
        # In this order: pipelines take the first parameter's dtype for the encoder's.
        self.table = table
        self.extra = nn.Embedding.from_pretrained(rows, freeze=False)
        self.first = int(table.weight.shape[0])

    @property
    def rows(self) -> nn.Parameter:
        """The extra rows, (n, dim)."""
        return self.extra.weight

    @property
    def weight(self) -> Tensor:
        """All rows, (V + n, dim)."""
        return torch.cat([self.table.weight, self.rows.to(self.table.weight.dtype)])

    def forward(self, ids: Tensor) -> Tensor:
        old = self.table(ids.clamp(max=self.first - 1))  # (B, L, dim)
        new = self.extra((ids - self.first).clamp(min=0)).to(old.dtype)
        return torch.where((ids >= self.first)[..., None], new, old)
