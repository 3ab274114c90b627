"""Which photos show the same thing: the robust centre of a set, and how near each photo is to it.

A photo's vector is the mean of the tower's last feature map, less the mean over ordinary photos.
Similarities are cosines put on a scale where 0 is no more alike than two chance photos, LINE is
the border between the same subject and something else, and 1 is the same picture. The scale's
constants come from photographs (tools/clip/calibrate.py) and lie beside the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LINE = 0.75
BLOCK = 1024
SAMPLE = 512  # photos that vote on where the densest half is; the search is quadratic

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """mean: (1280,) of the features of ordinary photos; line: the cosine that becomes LINE."""

    mean: Vectors
    line: float

    @classmethod
    def read(cls, path: Path) -> Calibration:
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            return cls(file.get_tensor("mean").astype(np.float32), float(file.metadata()["line"]))

    def embed(self, features: NDArray[np.floating]) -> Vectors:
        """(N, 1280) features -> unit vectors around the mean of ordinary photos."""
        vectors = np.empty(features.shape, np.float32)
        for i in range(0, len(features), BLOCK):  # no second copy of ten thousand vectors
            vectors[i : i + BLOCK] = unit(features[i : i + BLOCK].astype(np.float32) - self.mean)
        return vectors

    def scale(self, cosine: Vectors) -> Vectors:
        """Cosine -> similarity in [0, 1]: linear below the line and linear above it."""
        below = LINE * np.clip(cosine, 0, None) / self.line
        above = LINE + (1 - LINE) * (cosine - self.line) / (1 - self.line)
        return np.where(cosine < self.line, below, np.clip(above, None, 1.0)).astype(np.float32)


def similarities(
    vectors: Vectors, calibration: Calibration, voters: Sequence[int] | None = None
) -> Vectors:
    """(N, D) unit vectors -> (N,) similarity of each to the centre of the set.

    voters: rows that the centre may be made of; all of them, when fewer than two are named.
    A photo does not vote for itself: those that form the centre are compared with the rest of it.
    """
    rows = np.array(voters if voters and len(voters) > 1 else range(len(vectors)), np.intp)
    members = rows[centre(vectors[rows])]
    total = vectors[members].sum(0)
    cosine = vectors @ unit(total)
    cosine[members] = (vectors[members] * unit(total - vectors[members])).sum(1)
    return calibration.scale(cosine)


def centre(vectors: Vectors, rounds: int = 3) -> NDArray[np.intp]:
    """Indices of the densest half of the set: the half that a majority's subject makes up.

    The photo whose nearest half of the set is nearest starts; then the half nearest to the mean
    of the last half, until it stays. Large sets start from evenly spaced photos.
    """
    count = len(vectors)
    half = max(2, (count + 1) // 2)
    voters = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).round().astype(np.intp))
    among = vectors[voters] @ vectors[voters].T
    near = max(2, (len(voters) + 1) // 2)
    density = -np.sort(-among, axis=1)[:, :near].mean(1)
    start = voters[int(density.argmax())]
    members = _nearest(vectors @ vectors[start], half)
    for _ in range(rounds):
        again = _nearest(vectors @ unit(vectors[members].sum(0)), half)
        if np.array_equal(again, members):
            break
        members = again
    return members


def relative_line(similarity: Vectors, k: float = 3.0) -> float:
    """Median less k scaled median absolute deviations: a line for sets that keep no absolute one.

    1.4826 makes the deviation that of a normal distribution.
    """
    median = float(np.median(similarity))
    spread = 1.4826 * float(np.median(np.abs(similarity - median)))
    return median - k * max(spread, 0.02)


def unit(vectors: Vectors) -> Vectors:
    """Scaled to length 1 along the last axis."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(length, 1e-9)).astype(np.float32)


def _nearest(closeness: Vectors, count: int) -> NDArray[np.intp]:
    return np.sort(np.argsort(-closeness, kind="stable")[:count])
