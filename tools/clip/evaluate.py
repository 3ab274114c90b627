"""What the built-in CLIP, as it is shipped, calls photographs and `mini`'s things.

    python -m tools.clip.evaluate ../shared/data/dreambooth [--work DIR]

The folder is as for `calibrate`: the share of photos whose class is named, among the classes of the
photos that are there and among all classes of the table that words.txt knows (it has no row for a
cartoon). With the work folder of `tools.mini` also the share of new pictures of emoji that are
ranked first under their own name, among 200 names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from dreamtune.data import encoder, zeroshot
from tools.clip import calibrate
from tools.mini.evaluate import Share
from tools.mini.fit_clip import score_projections

UNKNOWN = {"cartoon"}


def right(photos: calibrate.Photos, names: Sequence[str]) -> Share:
    """Photos whose likeliest name is their class."""
    likeliest = zeroshot.probabilities(photos.features, names).argmax(1)
    return Share(int((np.array(names)[likeliest] == photos.classes).sum()), len(likeliest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    photos = calibrate.read(asked.folder)
    known = {*calibrate.class_table(asked.folder).values()} - UNKNOWN
    for names in (sorted(set(photos.classes)), sorted(known)):
        print(f"{right(photos, names)} among {', '.join(names)}")
    if asked.work:
        shipped = load_file(encoder.ASSETS / "projection.safetensors")
        projections = {name: tensor.float() for name, tensor in shipped.items()}
        print(f"{score_projections(asked.work, projections)} of new pictures, among 200 names")


if __name__ == "__main__":
    main()
