"""CLIP's byte-pair vocabulary, for bases that come without one.

open_clip carries the merges that OpenAI published with CLIP (Radford et al., arXiv:2103.00020); the
tokenizers of Stable Diffusion 1.x, 2.x and XL are all made of them.
"""

from __future__ import annotations

import functools
import gzip
from pathlib import Path

from dreamtune.errors import Usage

BYTES, ENDS = 512, ("<|startoftext|>", "<|endoftext|>")  # each byte inside a word and at its end


def of_size(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary {piece: id} of so many tokens, bytes, merges and two ends; and the merges."""
    count = size - BYTES - len(ENDS)
    merges = _merges()[:count] if count >= 0 else []
    if len(merges) != count:
        raise Usage(f"a text encoder with {size:,} tokens is not CLIP's", why="it has 49,408")
    pieces = [*_bytes(), *("".join(pair) for pair in merges), *ENDS]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def _bytes() -> list[str]:
    from open_clip.tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    return [*letters, *(f"{letter}</w>" for letter in letters)]


@functools.cache
def _merges() -> list[tuple[str, str]]:
    from open_clip.tokenizer import default_bpe

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    pairs = (line.split() for line in lines[1:])  # the first line is a comment
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
