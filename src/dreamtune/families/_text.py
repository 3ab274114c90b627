"""Tokenizers with their encoders, and what an identifier such as [V01] means to each of them.

A caption keeps the identifier as typed. Each tokenizer binds it to a word: a reserved token where
the base has some, else a rare word that is a single piece, as the DreamBooth paper advises
(arXiv:2208.12242, section 3.2). Where all tokenizers of a base know a word as one piece they bind
the same, so that in other tools one prompt reaches every encoder as it did in training.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamtune.bases import Base
from dreamtune.errors import Usage
from dreamtune.settings import IDENTIFIER

MEANT = 0.03  # of the spread; CLIP ViT-L's mean is 0.1 of it
NO_WEIGHTS: Mapping[str, Tensor] = {}
_RESERVED = re.compile(r"<id\d+>")
_CLIP = re.compile(r"([a-z]{1,4})</w>")
# Four letters are mostly a whole word of some language to T5. The paper too took three at most.
_T5 = re.compile(r"\u2581([a-z]{1,3})")


@dataclass
class TextStack:
    """A tokenizer and its encoder. `name` is the encoder's folder in the diffusers layout."""

    name: str
    tokenizer: Any
    encoder: Any
    length: int  # tokens a prompt is padded or cut to
    words: dict[str, str] = field(default_factory=dict)  # identifier -> word
    added: set[str] = field(default_factory=set)  # words that the tokenizer was not loaded with

    @property
    def part(self) -> str:
        """What files of embeddings call the encoder: T5 is the third, whatever its folder."""
        return "text_encoder_3" if self.encoder.config.model_type == "t5" else self.name

    def bind(self, identifier: str, word: str) -> None:
        """Let an identifier stand for a word, unless it stands for one already."""
        self.words.setdefault(identifier, word)

    def add_word(self, identifier: str, tokens: Sequence[str]) -> int:
        """Bind an identifier to tokens that are new to the tokenizer; returns the first id."""
        if self.tokenizer.add_tokens(list(tokens)) != len(tokens):
            raise Usage(
                f"{tokens[0]!r} is already a token of this base", fix="choose another identifier"
            )
        self.added |= set(tokens)
        self.words[identifier] = " ".join(tokens)
        return len(self.tokenizer) - len(tokens)

    def candidates(self) -> list[str]:
        """Words that an identifier can stand for: reserved ones, then the rarest first."""
        vocabulary = self.tokenizer.get_vocab()
        reserved = sorted(t for t in vocabulary if _RESERVED.fullmatch(t))
        pieces = sorted(vocabulary.items(), key=lambda item: -item[1])  # late pieces are rare words
        rare = [m[1] for t, _ in pieces if (m := _CLIP.fullmatch(t) or _T5.fullmatch(t))]
        rare.sort(key=len, reverse=True)
        # "sks" is the word that the field's guides, and so other people's prompts, use.
        return [*reserved, "sks", *rare]

    def is_piece(self, word: str) -> bool:
        """Whether the tokenizer leaves a word whole."""
        return len(self.ids(word)) == 1

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
        vocabulary = self.tokenizer.get_vocab().items()
        known = sorted((token, i) for token, i in vocabulary if token not in self.added)
        return hashlib.sha256(repr(known).encode()).hexdigest()


def bind(stacks: Sequence[TextStack], identifier: str) -> None:
    """Let an identifier stand for a free word: the same one in every tokenizer, if there is one.

    Among shared words, those that are rare in all come first.
    """
    if all(identifier in stack.words for stack in stacks):
        return
    lists = [stack.candidates() for stack in stacks]
    ranks = [{word: i for i, word in enumerate(words)} for words in lists]
    shared = set.intersection(*map(set, lists))
    ordered = sorted(shared, key=lambda word: sum(rank[word] for rank in ranks))
    word = _free_word(stacks, ordered, identifier)
    for stack, own in zip(stacks, lists, strict=True):
        alone = word or _free_word([stack], own, identifier)
        if alone is None:
            raise Usage(f"{stack.name} has no free word left for {identifier}")
        stack.bind(identifier, alone)


def _free_word(stacks: Sequence[TextStack], words: Sequence[str], identifier: str) -> str | None:
    """A word that is one piece in all stacks and bound in none; None if there is none.

    [V02] starts one word after [V01], so that adapters trained apart can be used together.
    """
    taken = {word for stack in stacks for word in stack.words.values()}
    number = re.search(r"\d+", identifier)
    skip = max(0, int(number[0]) - 1) if number else 0
    whole = (word for word in words if all(stack.is_piece(word) for stack in stacks))
    some = list(itertools.islice(whole, skip + len(taken) + 1))
    start = skip % len(some) if some else 0
    return next((word for word in [*some[start:], *some[:start]] if word not in taken), None)


def read_stacks(base: Base, encoders: dict[str, Any], t5_length: int = 0) -> list[TextStack]:
    """The stacks of a base: text_encoder_2 goes with tokenizer_2.

    t5_length: tokens of a prompt for T5, which has no limit of its own.
    """
    from transformers import CLIPTokenizer, T5TokenizerFast

    stacks = []
    for name, encoder in encoders.items():
        is_t5 = encoder.config.model_type == "t5"
        kind = T5TokenizerFast if is_t5 else CLIPTokenizer
        tokenizer = base.tokenizer(name.replace("text_encoder", "tokenizer"), kind)
        # Released configs say 2, for which transformers pools at the largest id: a new word's.
        for module in encoder.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = tokenizer.eos_token_id
        length = t5_length if is_t5 else int(encoder.config.max_position_embeddings)
        stacks.append(TextStack(name, tokenizer, encoder, length))
    return stacks


def emphasised(states: Tensor, weights: Tensor | None) -> Tensor:
    """States (1, L, D) times their tokens' weights (1, L), the mean restored where there is one.

    "Original" in modules/sd_emphasis.py of AUTOMATIC1111/stable-diffusion-webui; its "No norm" for
    encoders such as mini's, whose mean is nothing beside their spread: a quotient of two such means
    is noise.
    """
    if weights is None:
        return states
    louder = states * weights[..., None].to(states.dtype)
    restored = louder * (states.mean() / louder.mean())
    return torch.where(states.mean().abs() > MEANT * states.std(), restored, louder)


class TokenRows(nn.Module):
    """A token embedding with rows that can be trained while the others stay as they are.

    ids from `first` on read the rows (n, dim), all others the frozen table (V, dim). `first` is the
    first new token's id, and may lie below V: T5's table is longer than its vocabulary.
    keep_norm: rows are read at the length that they have now, whatever they are trained to.
    """

    norms: Tensor | None

    def __init__(
        self, table: nn.Embedding | TokenRows, rows: Tensor, first: int, keep_norm: bool = False
    ) -> None:
        super().__init__()
        # In this order: pipelines take the first parameter's dtype for the encoder's.
        self.table = table
        self.extra = nn.Embedding.from_pretrained(rows, freeze=False)
        norms = rows.norm(dim=1, keepdim=True) if keep_norm else None
        self.register_buffer("norms", norms, persistent=False)
        self.first = first

    @property
    def rows(self) -> nn.Parameter:
        """The rows as they are trained, (n, dim)."""
        return self.extra.weight

    @property
    def learned(self) -> Tensor:
        """The extra rows as they are read, (n, dim)."""
        if self.norms is None:
            return self.rows
        return self.rows * (self.norms / self.rows.norm(dim=1, keepdim=True))

    @property
    def weight(self) -> Tensor:
        """All rows that ids can read, (first + n, dim)."""
        old = self.table.weight[: self.first]
        return torch.cat([old, self.learned.to(old.dtype)])

    def forward(self, ids: Tensor) -> Tensor:
        old = self.table(ids.clamp(max=self.first - 1))  # (B, L, dim)
        new = functional.embedding((ids - self.first).clamp(min=0), self.learned).to(old.dtype)
        return torch.where((ids >= self.first)[..., None], new, old)
