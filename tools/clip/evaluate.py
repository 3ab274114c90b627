"""What the built-in CLIP calls photographs: the share whose class it names.

    python -m tools.clip.evaluate ../shared/data/dreambooth

The folder is as for `calibrate`. Asked twice: among the classes of the photos that are there, and
among all classes of the table that words.txt knows (it has no row for a cartoon).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamtune.data import zeroshot
from tools.clip import calibrate
from tools.mini.evaluate import Share

UNKNOWN = {"cartoon"}


def right(photos: calibrate.Photos, names: Sequence[str]) -> Share:
    """Photos whose likeliest name is their class."""
    likeliest = zeroshot.probabilities(photos.features, names).argmax(1)
    return Share(int((np.array(names)[likeliest] == photos.classes).sum()), len(likeliest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    photos = calibrate.read(folder)
    for names in (
        sorted(set(photos.classes)),
        sorted({*calibrate.class_table(folder).values()} - UNKNOWN),
    ):
        print(f"{right(photos, names)} among {', '.join(names)}")


if __name__ == "__main__":
    main()
