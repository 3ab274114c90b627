"""The same picture twice: equal bytes, or scaled, recompressed and mirrored copies.

Pairs are looked for with random hyperplanes (Charikar, 2002): photos whose 16 x 16 grey versions
point the same way fall into the same bucket in at least one of several tables, so the time grows
with the number of photos and not with its square.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .similarity import Vectors, unit

# (correlation of two 16 x 16 versions, cosine of their features), both needed. Recompression and
# scaling leave the small version as it is, cropping leaves the features. Of the pairs of different
# photos in ../shared the nearest has 0.84, and 0.78.
RULES = ((0.985, 0.5), (0.93, 0.93))
TABLES, BITS = 12, 12
NEAR = 6  # photos that each is compared with in a bucket, the most alike by one more projection

Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]


def copies(
    prints: NDArray[np.uint8], vectors: Vectors, worth: Sequence[tuple[float, ...]]
) -> dict[int, int]:
    """Photo -> the better photo that it is a copy of.

    prints: (N, 16, 16) grey levels; vectors: (N, D) unit vectors of features; worth: what makes
    one copy better than another, the first of equals wins

    Of a film, whose frames are each like the next, every frame stays that is unlike those that
    stay: being a copy is not passed on.
    """
    if len(prints) < 2:
        return {}
    plain, mirrored = _directions(prints), _directions(prints[:, :, ::-1])
    found: dict[int, int] = {}
    for group in _groups(plain, mirrored, vectors):
        stay: list[int] = []
        for one in sorted(group, key=lambda index: (worth[index], -index), reverse=True):
            alike = np.maximum(plain[stay] @ plain[one], mirrored[stay] @ plain[one])
            copied = _are_copies(alike, vectors[stay] @ vectors[one])
            if copied.any():
                found[one] = stay[int(copied.argmax())]
            else:
                stay.append(one)
    return found


def _groups(
    plain: NDArray[np.float32], mirrored: NDArray[np.float32], vectors: Vectors
) -> list[list[int]]:
    """Photos that are linked by copies, in groups of two and more."""
    count = len(plain)
    both = np.concatenate([plain, mirrored])
    leader = list(range(count))
    for left, right in _candidates(both):
        alike = np.einsum("nd,nd->n", both[left], both[right])
        near = alike >= min(RULES)[0]
        left, right, alike = left[near] % count, right[near] % count, alike[near]
        copied = _are_copies(alike, np.einsum("nd,nd->n", vectors[left], vectors[right]))
        for one, other in zip(left[copied].tolist(), right[copied].tolist(), strict=True):
            leader[_find(leader, one)] = _find(leader, other)
    found: dict[int, list[int]] = defaultdict(list)
    for index in range(count):
        found[_find(leader, index)].append(index)
    return [group for group in found.values() if len(group) > 1]


def _are_copies(alike: NDArray[np.float32], same: NDArray[np.float32]) -> NDArray[np.bool_]:
    rules = [(alike >= picture) & (same >= thing) for picture, thing in RULES]
    return np.any(rules, axis=0)


def _directions(prints: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 256) unit vectors without their mean: brightness and contrast do not matter."""
    flat = prints.reshape(len(prints), -1).astype(np.float32)
    return unit(flat - flat.mean(1, keepdims=True))


def _candidates(directions: NDArray[np.float32]) -> Iterator[Pairs]:
    """Pairs that share a bucket in one of the tables."""
    rng = np.random.default_rng(0)
    for _ in range(TABLES):
        sides = directions @ rng.standard_normal((directions.shape[1], BITS + 1)).astype(np.float32)
        codes = (sides[:, :BITS] > 0) @ (1 << np.arange(BITS))
        order = np.lexsort((sides[:, BITS], codes))
        for step in range(1, min(NEAR + 1, len(order))):
            left, right = order[:-step], order[step:]
            shared = codes[left] == codes[right]
            yield left[shared], right[shared]


def _find(leader: list[int], index: int) -> int:
    """The leader of a group, with the path to it shortened on the way."""
    while leader[index] != index:
        leader[index] = leader[leader[index]]
        index = leader[index]
    return index
