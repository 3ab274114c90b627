"""Naming what photos show: features built from the classifier's own rows, so that the answer is
known.
"""

from __future__ import annotations

import numpy as np
import pytest

from dreamtune.data import zeroshot
from dreamtune.errors import Usage

GOLDEN_RETRIEVER, TABBY, TEAPOT = 207, 281, 849


def features_of(*numbers: int) -> np.ndarray:
    """Features that the classifier takes for these classes: along their rows."""
    image, rows, _ = zeroshot._classifier()
    return 20 * (rows[list(numbers)] @ image)


def test_a_set_is_named_by_its_class_of_plain_words() -> None:
    said = zeroshot.classify(features_of(GOLDEN_RETRIEVER, GOLDEN_RETRIEVER))
    assert said[0][0] == "dog"
    assert [share for _, share in said] == sorted((share for _, share in said), reverse=True)
    assert sum(share for _, share in said) == pytest.approx(1, abs=1e-3)


def test_only_the_names_asked_for_compete() -> None:
    names = ("cat", "golden retriever", "red teapot")
    shares = zeroshot.probabilities(features_of(TABBY, GOLDEN_RETRIEVER, TEAPOT), names)
    assert shares.argmax(1).tolist() == [0, 1, 2]


def test_of_words_that_tie_the_one_that_says_more_comes_first() -> None:
    said = dict(zeroshot.classify(features_of(414), ("bag", "backpack")))
    assert list(said) == ["backpack", "bag"]


def test_a_phrase_is_known_by_its_end() -> None:
    assert zeroshot.rows_of("old racing car") == zeroshot.rows_of("racing car")


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(Usage, match="teapot"):
        zeroshot.rows_of("teapott")


def test_every_word_of_the_vocabulary_is_known_once() -> None:
    assert len(set(zeroshot.VOCABULARY)) == len(zeroshot.VOCABULARY)
    assert all(zeroshot.rows_of(word) for word in zeroshot.VOCABULARY)
    assert all(0 <= row < 1000 for rows in zeroshot.words().values() for row in rows)
