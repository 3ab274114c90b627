"""Identifiers and new words in CLIP's and T5's vocabularies."""

from __future__ import annotations

import re

import pytest
import torch

from dreamtune import families
from dreamtune.errors import Usage
from dreamtune.families import _tiny
from dreamtune.families._text import TokenRows, bind


def test_clip_and_t5_bind_the_same_piece() -> None:
    """One prompt in other tools then says to both what training said."""
    family = families.load("tiny:flux", torch.float32)
    for identifier in ("[V01]", "[V02]", "[mine]"):
        bind(family.text, identifier)
    clip, t5 = family.text
    assert clip.words == t5.words
    assert len(set(clip.words.values())) == 3
    for stack in family.text:
        assert all(len(stack.ids(word)) == 1 for word in stack.words.values())
        (word,) = stack.ids(stack.words["[V01]"])
        assert stack.tokenize(["a [V01] dog"])[0].tolist().count(word) == 1
        assert stack.record("[V01]")["ids"] == [word]


def test_without_a_common_piece_each_binds_its_own() -> None:
    clip, t5 = _tiny.clip("text_encoder", 8, 1), _tiny.t5("text_encoder_2", 8, 1, 16)
    clip.candidates = lambda: ["a", "b"]  # type: ignore[method-assign]
    t5.candidates = lambda: ["x", "y"]  # type: ignore[method-assign]
    bind([clip, t5], "[V01]")
    bind([clip, t5], "[V02]")
    assert (clip.words, t5.words) == ({"[V01]": "a", "[V02]": "b"}, {"[V01]": "x", "[V02]": "y"})
    with pytest.raises(Usage, match=re.escape("no free word left for [V03]")):
        bind([clip, t5], "[V03]")


def test_a_new_word_of_t5_is_read_from_its_row() -> None:
    """T5's table is longer than its vocabulary: the new id lies inside of it."""
    stack = _tiny.t5("text_encoder_2", 8, 1, 16)
    table, before = stack.encoder.get_input_embeddings(), stack.fingerprint()
    first = stack.add_word("[V01]", ["<rex-v01>"])
    assert stack.add_word("[V02]", ["<tom-v02>"]) == first + 1 < len(table.weight)
    rows = TokenRows(table, torch.full((2, 8), 7.0), first)
    stack.encoder.set_input_embeddings(rows)
    ids = stack.tokenize(["a [V01] and [V02]"])
    assert ids[0].tolist().count(first) == ids[0].tolist().count(first + 1) == 1
    read = rows(ids)
    new = ids >= first
    assert (read[new] == 7).all()
    assert torch.equal(read[~new], table(ids[~new]))
    assert rows.weight.shape == (first + 2, 8)
    stack.encoder(ids)[0].sum().backward()
    assert rows.rows.grad is not None and rows.rows.grad.abs().min() > 0
    assert stack.fingerprint() == before
