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


def groups(prints: NDArray[np.uint8], vectors: Vectors) -> list[list[int]]:
    """Indices of photos that show the same picture, in groups of two and more.

    prints: (N, 16, 16) grey levels; vectors: (N, D) unit vectors of features
    """
    count = len(prints)
    both = np.concatenate([_directions(prints), _directions(prints[:, :, ::-1])])  # as is, mirrored
    leader = list(range(count))
    for left, right in _candidates(both):
        alike = np.einsum("nd,nd->n", both[left], both[right])
        left, right, alike = (
            part[alike >= min(RULES)[0]] for part in (left % count, right % count, alike)
        )
        same = np.einsum("nd,nd->n", vectors[left], vectors[right])
        copies = np.any([(alike >= picture) & (same >= thing) for picture, thing in RULES], axis=0)
        for one, other in zip(left[copies].tolist(), right[copies].tolist(), strict=True):
            leader[_find(leader, one)] = _find(leader, other)
    found: dict[int, list[int]] = defaultdict(list)
    for index in range(count):
        found[_find(leader, index)].append(index)
    return sorted(group for group in found.values() if len(group) > 1)


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


def best(group: Sequence[int], worth: Sequence[tuple[float, ...]]) -> int:
    """The member of a group that is worth most; the first of equals."""
    return max(group, key=lambda index: (worth[index], -index))
