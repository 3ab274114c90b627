"""What photos show, in plain words, from the features that prep has computed already.

The words are those of `words.txt` beside the image tower: some five hundred that people use, then
ImageNet's own class names; each covers some of the rows of the tower's ImageNet classifier. It is
no free text: a phrase is known by its last words, "red racing car" as "racing car".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import Usage, suggest
from .similarity import Vectors

ROWS, WORDS = "classes.safetensors", "words.txt"
ASSETS = Path(__file__).parents[1] / "assets" / "clip"

# What people photograph to personalise a model.
_VOCABULARY = """
airplane, ambulance, apple, axe, backpack, bag, ball, banana, barrel, basket, bear, bed, bee,
beetle, bell, bench, bicycle, bird, boat, book, boot, bottle, bowl, box, bridge, bucket, bus,
butterfly, cake, camel, camera, can, candle, car, castle, cat, chair, chicken, church, clock,
coat, computer, cow, crab, crocodile, crown, cup, deer, desk, dinosaur, dog, door, dress, drum,
duck, elephant, fan, fish, flower, fountain, fox, frog, glasses, goat, goose, guitar, hammer,
handbag, hat, helmet, hippo, horse, house, insect, jacket, jeans, jellyfish, kangaroo, kettle,
key, keyboard, knife, koala, lamp, laptop, lemon, lion, lizard, lock, microphone, mirror, monkey,
motorcycle, mouse, mug, mushroom, necklace, orange, owl, panda, parrot, pen, penguin, phone,
piano, pig, pillow, pineapple, pizza, plant, pot, pumpkin, rabbit, radio, ring, robot, sandal,
scarf, seal, sheep, ship, shirt, shoe, skirt, sloth, snail, snake, sneaker, sock, sofa, spider,
squirrel, stove, strawberry, suitcase, sunglasses, table, teapot, television, tent, tiger,
toaster, tractor, train, truck, trumpet, turtle, umbrella, van, vase, violin, wallet, watch,
wheel, whale, wolf, zebra, stuffed animal, fire truck, toy car, ice cream, hot dog, hair dryer
"""
VOCABULARY = tuple(" ".join(word.split()) for word in _VOCABULARY.split(","))


def classify(features: Vectors, names: Sequence[str] = ()) -> list[tuple[str, float]]:
    """What a set of photos of one thing shows: names with probabilities, the likeliest first.

    features: (N, 1280) of the image tower. names: candidates; VOCABULARY where none are given.
    """
    shares = probabilities(features, names).mean(0)
    asked = candidates(names)
    # Of words that tie, such as bag and backpack, the one that says more.
    order = np.lexsort(([len(rows_of(name)) for name in asked], -shares))
    return [(asked[i], float(shares[i])) for i in order]


def probabilities(features: Vectors, names: Sequence[str] = ()) -> NDArray[np.float32]:
    """(N, 1280) -> (N, names): softmax over names, each as strong as the best row it covers.

    The best row rather than the sum: the words cover very different numbers of rows.
    """
    image, rows, bias = _classifier()
    logits = features.astype(np.float32) @ image.T @ rows.T + bias  # (N, 1000)
    covered = [rows_of(name) for name in candidates(names)]
    strength = np.stack([logits[:, numbers].max(1) for numbers in covered], axis=1)
    odds = np.exp(strength - strength.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True), np.float32)


def candidates(names: Sequence[str]) -> tuple[str, ...]:
    """The names asked for, or VOCABULARY."""
    return tuple(names) or VOCABULARY


def rows_of(name: str) -> list[int]:
    """Rows of the classifier that a word covers; a phrase by the longest end that is known."""
    parts = name.lower().replace("-", " ").split()
    for start in range(len(parts)):
        found = words().get(" ".join(parts[start:]))
        if found:
            return list(found)
    raise Usage(f"no pictures are known for {name!r}", fix=suggest(name, list(words())))


@lru_cache(1)
def words() -> dict[str, tuple[int, ...]]:
    """Word -> rows that it covers."""
    lines = (ASSETS / WORDS).read_text(encoding="utf-8").splitlines()
    pairs = (line.rsplit(": ", 1) for line in lines)
    return {word: tuple(map(int, numbers.split())) for word, numbers in pairs}


@lru_cache(1)
def _classifier() -> tuple[Vectors, Vectors, Vectors]:
    """image (256, 1280), rows (1000, 256), bias (1000,)"""
    from safetensors.numpy import load_file

    tensors = load_file(ASSETS / ROWS)
    image, rows, bias = (tensors[key].astype(np.float32) for key in ("image", "rows", "bias"))
    return image, rows, bias
