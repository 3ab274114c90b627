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
TABLES, BITS = 10, 12
CROWD = 32  # members of a bucket that a photo is compared with


def groups(prints: NDArray[np.uint8], vectors: Vectors) -> list[list[int]]:
    """Indices of photos that show the same picture, in groups of two and more.

    prints: (N, 16, 16) grey levels; vectors: (N, D) unit vectors of features
    """
    plain = _directions(prints)
    mirrored = _directions(prints[:, :, ::-1])
    leader = list(range(len(prints)))
    for a, b in _candidates(plain, mirrored):
        alike = max(float(plain[a] @ plain[b]), float(plain[a] @ mirrored[b]))
        same = float(vectors[a] @ vectors[b])
        if any(alike >= picture and same >= thing for picture, thing in RULES):
            leader[_find(leader, a)] = _find(leader, b)
    found: dict[int, list[int]] = defaultdict(list)
    for index in range(len(prints)):
        found[_find(leader, index)].append(index)
    return sorted(group for group in found.values() if len(group) > 1)


def _directions(prints: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 256) unit vectors without their mean: brightness and contrast do not matter."""
    flat = prints.reshape(len(prints), -1).astype(np.float32)
    return unit(flat - flat.mean(1, keepdims=True))


def _candidates(
    plain: NDArray[np.float32], mirrored: NDArray[np.float32]
) -> Iterator[tuple[int, int]]:
    """Pairs that share a bucket, the photo itself or its mirror image."""
    planes = np.random.default_rng(0).standard_normal((plain.shape[1], TABLES * BITS))
    codes, mirror_codes = _codes(plain @ planes), _codes(mirrored @ planes)
    for table in range(TABLES):
        buckets: dict[int, list[int]] = defaultdict(list)
        for index, (code, mirror) in enumerate(zip(codes[table], mirror_codes[table], strict=True)):
            for other in {*buckets[code][:CROWD], *buckets[mirror][:CROWD]}:
                yield index, other
            buckets[code].append(index)


def _codes(sides: NDArray[np.floating]) -> NDArray[np.int64]:
    """(N, TABLES * BITS) signed distances -> (TABLES, N) bucket numbers."""
    bits = (sides > 0).reshape(len(sides), TABLES, BITS)
    codes: NDArray[np.int64] = (bits @ (1 << np.arange(BITS, dtype=np.int64))).T
    return codes


def _find(leader: list[int], index: int) -> int:
    """The leader of a group, with the path to it shortened on the way."""
    while leader[index] != index:
        leader[index] = leader[leader[index]]
        index = leader[index]
    return index


def best(group: Sequence[int], worth: Sequence[tuple[float, ...]]) -> int:
    """The member of a group that is worth most; the first of equals."""
    return max(group, key=lambda index: (worth[index], -index))
