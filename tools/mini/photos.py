"""The pictures that `make demo` prepares and trains on: a subject that `mini` has never seen, in
several surroundings, and one picture of something else for prep to find.

    python -m tools.mini.photos --work DIR --out src/dreamtune/assets/photos/cherries
"""

import argparse
import random
from pathlib import Path

from PIL import Image

from tools.mini.artwork import PACKAGES, held_out_codes
from tools.mini.compose import compose
from tools.mini.words import Background, Picture

SUBJECT, STRANGER = "1f352", "1f45f"  # cherries, a shoe
SIZE = 256
SURROUNDINGS = [
    Background("plain", "blue"),
    Background("plain", "yellow"),
    Background("meadow"),
    Background("table"),
    Background("plain", "white"),
    Background("stripes", "pink", "white"),
]


def draw(modules: Path, code: str, background: Background, seed: int) -> Image.Image:
    """One picture, SIZE px, from the artwork at its full size."""
    folder = modules / PACKAGES["3d"].rpartition("@")[0] / "assets"
    master = Image.open(folder / f"{code}.webp").convert("RGBA")
    picture = Picture("3d", (code,), "", background)
    return Image.fromarray(compose(picture, {f"3d/{code}": master}, SIZE, random.Random(seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    assert SUBJECT in held_out_codes(args.held_out), "mini has been trained on the subject"
    args.out.mkdir(parents=True, exist_ok=True)
    modules = args.work / "npm" / "node_modules"
    scenes = [(SUBJECT, background) for background in SURROUNDINGS]
    for number, (code, background) in enumerate(
        [*scenes, (STRANGER, Background("plain", "white"))]
    ):
        picture = draw(modules, code, background, seed=number)
        picture.save(args.out / f"{number:02d}.jpg", quality=92, subsampling=0)


if __name__ == "__main__":
    main()
