"""How many planted photos the similarity filter catches, and how many own photos it sets aside.

    python -m bench.prep_filter ../shared/data/dreambooth

Sets are a subject's photos with photos of other classes planted among them, judged by the code
that `dreamtune prep` runs, at 0.75. Photos are decoded and encoded once; each set is then judged
by itself. Two sets of constants: those that ship, and, held out, those that the other four fifths
of the subjects give (tools/clip/calibrate.py), which is the honest figure since the shipped ones
come from these photos.

Intervals are 95 %: Wilson's for a share of independent photos, and a bootstrap over subjects,
which allows for photos of one subject being alike. Sets of 10 and 30 are filled up with crops,
turns and exposures of the subject's own photos, since no subject here has that many.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from dreamtune.data import encoder, judge, quality
from dreamtune.data.album import Album, Looked
from dreamtune.data.examine import for_tower, shrunk
from dreamtune.data.similarity import Calibration
from tools.clip import calibrate

FOLDS, DRAWS, VIEWS = 5, 20, 7


@dataclass(frozen=True)
class Case:
    """own: photos of the subject, 0 for all it has; planted: how many; same: of the same class."""

    words: str
    own: int
    planted: int
    same: bool = False


CASES = (
    Case("all own, three planted", 0, 3),
    Case("4, one planted", 4, 1),
    Case("4, a third planted", 4, 2),
    Case("10, one planted", 10, 1),
    Case("10, three planted", 10, 3),
    Case("10, a third planted", 10, 5),
    Case("30, one planted", 30, 1),
    Case("30, three planted", 30, 3),
    Case("30, a third planted", 30, 15),
    Case("all own, one of the same class", 0, 1, same=True),
    Case("all own, three of the same class", 0, 3, same=True),
)


@dataclass(frozen=True)
class Pool:
    """Photos and altered views of them, by subject: rows of `features` and `prints`."""

    photos: calibrate.Photos
    prints: np.ndarray
    quality: list[quality.Quality]
    original: np.ndarray  # whether a row is a photo as it is


def views(image: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
    """The photo, and VIEWS altered ones: crop of half to all of it, turn, exposure."""
    made = [image]
    for _ in range(VIEWS):
        side = math.sqrt(rng.uniform(0.5, 1)) * min(image.size)
        left, top = (rng.uniform(0, length - side) for length in image.size)
        view = image.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC, fillcolor=(128,) * 3)
        view = view.crop((int(left), int(top), int(left + side), int(top + side)))
        made.append(ImageEnhance.Brightness(view).enhance(rng.uniform(0.75, 1.25)))
    return made


def read(folder: Path) -> Pool:
    known = calibrate.class_table(folder)
    rng = np.random.default_rng(0)
    encode = encoder.load()
    features, prints, measured, subjects, original = [], [], [], [], []
    for file in sorted(folder.glob("*/*.jpg")):
        made = views(Image.open(file).convert("RGB"), rng)
        small = [shrunk(view) for view in made]
        features.append(encode(np.stack([for_tower(view) for view in small])).features)
        prints += [quality.fingerprint(quality.small(view)) for view in small]
        measured += [quality.measure(quality.small(view)) for view in small]
        subjects += [file.parent.name] * len(made)
        original += [True] + [False] * VIEWS
    names = np.array(subjects)
    classes = np.array([known[name] for name in names])
    photos = calibrate.Photos(np.concatenate(features), names, classes)
    return Pool(photos, np.stack(prints), measured, np.array(original))


def verdicts(pool: Pool, rows: Sequence[int], calibration: Calibration) -> list[str]:
    """The codes of one set, as prep would give them with its default settings."""
    looked = [
        Looked(
            f"{i}.jpg", sha256=str(row), picture="x", original=(640, 640), quality=pool.quality[row]
        )
        for i, row in enumerate(rows)
    ]
    features = pool.photos.features[list(rows)].astype(np.float16)
    heat = np.zeros((len(rows), 7, 7), np.float32)
    album = Album(looked, features, heat, pool.prints[list(rows)])
    rules = judge.Rules(threshold=0.75, copies=True)
    return [v.code for v in judge.judge(album, calibration, rules).verdicts]


def draw(
    pool: Pool, subject: str, among: Sequence[str], case: Case, rng: np.random.Generator
) -> tuple[list[int], list[int]] | None:
    """(own, planted) rows of one set; None when there is nobody of the same class."""
    subjects, classes = pool.photos.subjects, pool.photos.classes
    mine = np.flatnonzero((subjects == subject) & pool.original)
    word = classes[mine[0]]
    alike = classes == word if case.same else classes != word
    others = np.flatnonzero(
        np.isin(subjects, among) & alike & (subjects != subject) & pool.original
    )
    if len(others) < case.planted:
        return None
    own = mine
    if case.own and case.own <= len(mine):
        own = rng.choice(mine, case.own, replace=False)
    elif case.own:
        altered = np.flatnonzero((subjects == subject) & ~pool.original)
        own = np.concatenate([mine, rng.choice(altered, case.own - len(mine), replace=False)])
    return list(own), list(rng.choice(others, case.planted, replace=False))


def measure(
    pool: Pool, groups: Sequence[tuple[Sequence[str], Calibration]], case: Case
) -> dict[str, np.ndarray]:
    """subject -> (draws, 4): planted, planted caught, own, own set aside."""
    rng = np.random.default_rng(7)
    found: dict[str, np.ndarray] = {}
    for subjects, calibration in groups:
        for subject in subjects:
            counts = []
            for _ in range(DRAWS):
                rows = draw(pool, subject, subjects, case, rng)
                if rows is None:
                    break
                own, planted = rows
                codes = np.array(verdicts(pool, own + planted, calibration)) == "similarity.low"
                caught, lost = codes[len(own) :].sum(), codes[: len(own)].sum()
                counts.append((len(planted), caught, len(own), lost))
            if counts:
                found[subject] = np.array(counts)
    return found


def groups_of(pool: Pool, held_out: bool) -> list[tuple[list[str], Calibration]]:
    """Subjects with the constants to judge them by."""
    names = sorted(set(pool.photos.subjects))
    if not held_out:
        return [(names, encoder.load().calibration)]
    plain = pool.original
    photos = calibrate.Photos(
        pool.photos.features[plain], pool.photos.subjects[plain], pool.photos.classes[plain]
    )
    order = [str(name) for name in np.random.default_rng(0).permutation(names)]
    made = []
    for fold in range(FOLDS):
        held = order[fold::FOLDS]
        rest = [name for name in names if name not in held]
        mean = photos.features[np.isin(photos.subjects, rest)].mean(0)
        line = calibrate.line_between(*calibrate.cosines(photos, rest, mean, seed=1))
        made.append((held, Calibration(mean, line)))
    return made


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share."""
    share = hits / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (middle - spread) / scale, (middle + spread) / scale


def bootstrap(found: dict[str, np.ndarray], of: int, hits: int) -> tuple[float, float]:
    """95 % interval of a share, subjects drawn with replacement."""
    sums = np.array([counts.sum(0) for counts in found.values()])
    rng = np.random.default_rng(0)
    draws = sums[rng.integers(0, len(sums), (4000, len(sums)))].sum(1)
    low, high = np.quantile(draws[:, hits] / draws[:, of], (0.025, 0.975))
    return float(low), float(high)


def line(found: dict[str, np.ndarray], of: int, hits: int) -> str:
    total = np.concatenate(list(found.values())).sum(0)
    share = total[hits] / total[of]
    low, high = wilson(int(total[hits]), int(total[of]))
    first, last = bootstrap(found, of, hits)
    words = f"{share:6.1%} of {total[of]:5d} [{low:.1%}, {high:.1%}]"
    return f"{words} subjects [{first:.1%}, {last:.1%}]"


def main(say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    pool = read(parser.parse_args().folder)
    for words, held_out in (("shipped constants", False), ("held out", True)):
        say(f"\n{words}")
        groups = groups_of(pool, held_out)
        for case in CASES:
            found = measure(pool, groups, case)
            if not found:
                say(f"  {case.words}: no such subjects in these folds")
                continue
            caught, aside = line(found, 0, 1), line(found, 2, 3)
            say(f"  {case.words:33s} caught {caught}")
            say(f"  {'':33s} own set aside {aside}")


if __name__ == "__main__":
    main()
