"""Derive assets/clip/calibration.safetensors: the mean feature and the line between subjects.

    python -m tools.clip.calibrate ../shared/data/dreambooth            # report, write
    python -m tools.clip.calibrate ../shared/data/dreambooth --check    # report only

The folder holds one folder of photos for each subject, and prompts_and_classes.txt with the class
of each. Sets are drawn as in the issue: a subject's photos with photos of other classes planted
among them. The line is the cosine in the middle between the planted photos' 99.9th percentile and
the own photos' 0.1th.

The report is not fitted to itself: in each of five folds the mean and the line come from the
subjects of the other four, and own and planted photos come from the fold.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreamtune import fsops
from dreamtune.data import encoder
from dreamtune.data.examine import for_tower, shrunk
from dreamtune.data.similarity import Calibration, Vectors, similarities

FOLDS, DRAWS, PLANTED = 5, 20, 3


@dataclass(frozen=True)
class Photos:
    """features (N, D), and the subject and class of each photo."""

    features: Vectors
    subjects: NDArray[np.str_]
    classes: NDArray[np.str_]


def class_table(folder: Path) -> dict[str, str]:
    """Subject to class, by the table in the folder."""
    table = (folder / "prompts_and_classes.txt").read_text().splitlines()
    rows = itertools.takewhile(bool, table[table.index("subject_name,class") + 1 :])
    return dict(row.split(",") for row in rows)


def read(folder: Path) -> Photos:
    """Every photo below `folder`, through the bundled tower."""
    known = class_table(folder)
    files = sorted(folder.glob("*/*.jpg"))
    pixels = np.stack([for_tower(shrunk(Image.open(file).convert("RGB"))) for file in files])
    subjects = np.array([file.parent.name for file in files])
    classes = np.array([known[subject] for subject in subjects])
    return Photos(encoder.load()(pixels).features, subjects, classes)


def cosines(
    photos: Photos, subjects: Sequence[str], mean: Vectors, seed: int
) -> tuple[Vectors, Vectors]:
    """(own, planted) cosines to the centre, over DRAWS sets for each subject."""
    rng = np.random.default_rng(seed)
    plain = Calibration(mean, 0.5)  # undone below: with this line the scale is easy to invert
    own, planted = [], []
    inside = np.isin(photos.subjects, subjects)
    for subject in subjects:
        mine = np.flatnonzero(photos.subjects == subject)
        word = photos.classes[mine[0]]
        others = np.flatnonzero(inside & (photos.classes != word))
        for _ in range(DRAWS):
            chosen = rng.choice(others, PLANTED, replace=False)
            vectors = plain.embed(photos.features[[*mine, *chosen]])
            values = similarities(vectors, plain)
            own.append(values[: len(mine)])
            planted.append(values[len(mine) :])
    return _cosine(np.concatenate(own)), _cosine(np.concatenate(planted))


def _cosine(similarity: Vectors) -> Vectors:
    """Undo Calibration.scale for a line at 0.5."""
    return np.where(similarity < 0.75, similarity / 1.5, 2 * similarity - 1).astype(np.float32)


def line_between(own: Vectors, planted: Vectors) -> float:
    return float(np.quantile(own, 0.001) + np.quantile(planted, 0.999)) / 2


def fold_report(photos: Photos) -> None:
    """Held-out figures: what the constants of other subjects do on these."""
    names = sorted(set(photos.subjects))
    rng = np.random.default_rng(0)
    order = rng.permutation(names)
    caught, lost, lines = [], [], []
    for fold in range(FOLDS):
        held = list(order[fold::FOLDS])
        rest = [name for name in names if name not in held]
        mean = photos.features[np.isin(photos.subjects, rest)].mean(0)
        line = line_between(*cosines(photos, rest, mean, seed=1))
        own, planted = cosines(photos, held, mean, seed=2)
        caught.append(planted < line)
        lost.append(own < line)
        lines.append(line)
    words = " ".join(f"{line:.3f}" for line in lines)
    print(f"lines of the folds {words}")
    planted_caught, own_lost = np.concatenate(caught), np.concatenate(lost)
    print(f"held out: planted caught {planted_caught.mean():.2%} of {len(planted_caught)}")
    print(f"held out: own set aside {own_lost.mean():.2%} of {len(own_lost)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args()
    photos = read(asked.folder)
    fold_report(photos)
    mean = photos.features.mean(0)
    own, planted = cosines(photos, sorted(set(photos.subjects)), mean, seed=0)
    line = round(line_between(own, planted), 3)
    print(f"all subjects: own from {own.min():.3f}, planted to {planted.max():.3f}, line {line}")
    if not asked.check:
        target = encoder.ASSETS / encoder.CALIBRATION
        fsops.write_safetensors(target, {"mean": mean.astype(np.float32)}, {"line": str(line)})
        print(target)


if __name__ == "__main__":
    main()
