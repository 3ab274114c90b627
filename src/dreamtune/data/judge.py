"""Which photos stay: rules from what was measured to a code and words, in a fixed order.

A copy is put aside before the centre of the set is looked for, since ten copies of a wrong photo
would otherwise be the centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from . import duplicates, similarity
from .album import Album, Looked
from .similarity import Calibration

FLAT = 0.985  # share of pixels in one narrow band of grey above which a photo shows nothing
DULL = 2.0  # standard deviation of grey levels below which it shows nothing


@dataclass(frozen=True)
class Rules:
    """threshold: similarity from 0 to 1, or None for a line relative to the set's median
    centred:    whether the photos are of one subject, so that there is a centre
    blur:       sharpness below which a photo is put aside, 0 for never
    keep, drop: file names or patterns that decide by themselves
    """

    threshold: float | None = similarity.LINE
    centred: bool = True
    copies: bool = False
    blur: float = 0.0
    keep: Sequence[str] = ()
    drop: Sequence[str] = ()


@dataclass(frozen=True)
class Verdict:
    """What becomes of one photo; `code` and `detail` say why it is set aside."""

    looked: Looked
    similarity: float | None
    code: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Judgement:
    """One verdict a photo, in order; `remarks` are about the set as a whole.

    line: the similarity that was asked for, None when the set has no centre
    """

    verdicts: list[Verdict]
    remarks: list[str]
    line: float | None


def judge(album: Album, calibration: Calibration, rules: Rules) -> Judgement:
    """Decide for every photo of the album."""
    reasons = {i: (e.code, e.detail) for i, e in enumerate(album.looked) if e.code}
    seen = [i for i in range(len(album.looked)) if i not in reasons]
    vectors = calibration.embed(album.features[seen])
    for index in seen:
        reasons |= _by_itself(index, album.looked[index], rules)
    if not rules.copies:
        reasons |= _copies(album, seen, vectors, reasons)
    remarks: list[str] = []
    line = None
    near: dict[int, float] = {}
    if rules.centred and len(seen) > 1:
        voters = [row for row, index in enumerate(seen) if index not in reasons]
        values = similarity.similarities(vectors, calibration, voters)
        near = {i: round(float(v), 4) for i, v in zip(seen, values, strict=True)}
        strangers, line = _strangers(near, reasons, rules, remarks)
        reasons |= strangers
    verdicts = [
        Verdict(entry, near.get(index), *_final(index, entry, reasons, rules))
        for index, entry in enumerate(album.looked)
    ]
    return Judgement(verdicts, remarks, line)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern, a plain name or a path that a shell completed means this file."""
    base = name.rsplit("/", 1)[-1]
    return any(
        p in (name, base) or p.endswith(f"/{name}") or fnmatchcase(name, p) or fnmatchcase(base, p)
        for p in patterns
    )


Reasons = dict[int, tuple[str, str]]


def _by_itself(index: int, looked: Looked, rules: Rules) -> Reasons:
    """What one photo shows without the others."""
    quality = looked.quality
    if matches(looked.name, rules.drop):
        return {index: ("user.drop", "asked for with --drop")}
    if quality.flatness >= FLAT or quality.contrast < DULL:
        share = f"{quality.flatness:.0%} of it is one colour"
        return {index: ("image.blank", share)}
    if quality.sharpness < rules.blur:
        words = f"sharpness {quality.sharpness:.3f}, under {rules.blur:g}"
        return {index: ("image.blurred", words)}
    return {}


def _copies(
    album: Album, seen: list[int], vectors: similarity.Vectors, reasons: Reasons
) -> Reasons:
    """Copies of better photos. Blank photos are all alike and are left out."""
    rows = [row for row, index in enumerate(seen) if reasons.get(index, ("",))[0] != "image.blank"]
    looked = [album.looked[seen[row]] for row in rows]
    worth = [_worth(entry, seen[row] in reasons) for entry, row in zip(looked, rows, strict=True)]
    found: Reasons = {}
    prints = album.prints[[seen[row] for row in rows]]
    for copy, kept in duplicates.copies(prints, vectors[rows], worth).items():
        if seen[rows[copy]] not in reasons:
            same = looked[copy].sha256 == looked[kept].sha256
            code = "image.duplicate" if same else "image.near_duplicate"
            words = "the same picture as" if same else "a copy of"
            found[seen[rows[copy]]] = (code, f"{words} {looked[kept].name}")
    return found


def _worth(looked: Looked, faulty: bool) -> tuple[float, ...]:
    """What makes one copy better: no fault, more pixels, less to mend, less compression."""
    pixels = looked.original[0] * looked.original[1]
    return (not faulty, pixels, -len(looked.notes), looked.bytes)


def _strangers(
    near: dict[int, float], reasons: Reasons, rules: Rules, remarks: list[str]
) -> tuple[Reasons, float | None]:
    """(photos unlike the rest, the line); nothing when the set has no centre to be unlike."""
    rest = {index: value for index, value in near.items() if index not in reasons}
    if len(rest) < 2:
        return {}, None
    line = rules.threshold
    if line is None:
        line = similarity.relative_line(np.array(list(rest.values()), np.float32))
    low = {index: value for index, value in rest.items() if value < line}
    if 2 * len(low) > len(rest):
        few = f"{len(low)} of {len(rest)} photos are unlike the others"
        remarks.append(f"{few}, so the set has no centre and all of them are kept")
        return {}, None
    return {
        i: ("similarity.low", f"{value:.2f}, under {line:.2f}") for i, value in low.items()
    }, line


def _final(index: int, looked: Looked, reasons: Reasons, rules: Rules) -> tuple[str, str]:
    """The reason, unless the user wants the photo all the same and there is one to keep."""
    if looked.picture and matches(looked.name, rules.keep):
        return "", ""
    return reasons.get(index, ("", ""))
