"""Prompts to what a base reads: emphasis, long prompts in chunks, and each text encoded once.

A chunk is what the encoder takes at once (77 tokens in CLIP: begin, 75 of the prompt, end). Where a
base reads several chunks one after the other, a longer prompt is cut into chunks and the states are
joined; a prompt that fits and has no emphasis gives exactly what the diffusers pipeline gives.

The rules are A1111's (modules/sd_hijack_clip.py): a full chunk ends at its last comma, if that is
among its last 20 tokens; pooled text is the first chunk's; emphasis as `families._text` has it.
Where prompt and negative prompt differ in length, the shorter is filled with empty chunks, which is
A1111's "Pad prompt/negative prompt to be same length".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dreamtune import console
from dreamtune.formats import prompts

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.families import Family
    from dreamtune.families._text import TextStack

BACKTRACK = 20  # tokens
REMEMBERED = 256  # texts
States = dict[str, "Tensor"]  # (1, …) each
Row = list[tuple[int, float]]  # token ids of a chunk, without begin, end and padding; weights


class Texts:
    """The texts of one base as it is now: make another when adapters change."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.identifiers = frozenset(word for stack in family.text for word in stack.words)
        self._rows = functools.cache(self._cut)
        self._encoded = functools.lru_cache(REMEMBERED)(self._encode)

    def states(self, text: str, chunks: int) -> States:
        """The states of a text, filled with empty chunks to `chunks`; pooled is the first's."""
        parts = self._encoded(text)
        parts = [*parts, *self._encoded("") * (chunks - len(parts))]
        joined = torch.cat([part["text"] for part in parts], dim=1)
        return {**parts[0], "text": joined}

    def length(self, text: str) -> int:
        """Chunks that a text takes."""
        return max(map(len, self._rows(text).values()))

    def _cut(self, text: str) -> dict[str, list[Row]]:
        """Chunks by stack; a base that reads one only gets the first, and what is lost is named."""
        sections = prompts.parse(text, self.identifiers)
        found = {stack.name: cut(stack, sections) for stack in self.family.text}
        if self.family.reads_chunks:
            return found
        longest = max(self.family.text, key=lambda stack: stack.length)
        if lost := [token for row in found[longest.name][1:] for token, _ in row]:
            end = longest.tokenizer.decode(lost)
            console.warn(f"{self.family.base} reads {longest.length} tokens, and not {end!r}")
        return {name: rows[:1] for name, rows in found.items()}

    def _encode(self, text: str) -> list[States]:
        rows = self._rows(text)
        return [self._encode_chunk(rows, i) for i in range(max(map(len, rows.values())))]

    def _encode_chunk(self, rows: dict[str, list[Row]], i: int) -> States:
        """One chunk of every stack; a stack with fewer has an empty one."""
        device = self.family.denoiser.device
        tokens, weights = {}, {}
        for stack in self.family.text:
            row = rows[stack.name][i] if i < len(rows[stack.name]) else []
            tokens[stack.name] = torch.tensor([filled(stack, row)], device=device)
            if any(weight != 1 for _, weight in row):
                padded = torch.ones(1, stack.length)
                first = len(_begin(stack))
                padded[0, first : first + len(row)] = torch.tensor([weight for _, weight in row])
                weights[stack.name] = padded.to(device)
        return self.family.encode_text(tokens, weights)


def cut(stack: TextStack, sections: Sequence[prompts.Section]) -> list[Row]:
    """The tokens of a parsed prompt in rows that leave room for begin and end."""
    comma = stack.tokenizer.get_vocab().get(",</w>")
    room = stack.length - len(_begin(stack)) - 1
    rows: list[Row] = []
    for section in sections:
        rows.append([])
        last_comma: int | None = None
        for text, weight in section:
            for token in stack.ids(stack.prompt(text)):
                row = rows[-1]
                if token == comma:
                    last_comma = len(row)
                if len(row) == room:
                    near = last_comma is not None and 0 < room - last_comma <= BACKTRACK
                    at = last_comma + 1 if near and last_comma is not None else room
                    rows[-1:] = [row[:at], row[at:]]
                    last_comma = None
                rows[-1].append((token, weight))
    return rows[:-1] if len(rows) > 1 and not rows[-1] else rows


def filled(stack: TextStack, row: Row) -> list[int]:
    """Begin, the row, end and padding: as many ids as the encoder takes."""
    words = stack.tokenizer
    ids = [*_begin(stack), *(token for token, _ in row), words.eos_token_id]
    return [*ids, *[words.pad_token_id] * (stack.length - len(ids))]


def _begin(stack: TextStack) -> list[int]:
    """CLIP has a token for the beginning, T5 has none."""
    token = stack.tokenizer.bos_token_id
    return [] if token is None else [token]
