"""A prep artifact as training reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamtune.errors import Damaged


@dataclass(frozen=True)
class Sample:
    """One photo: where it is, what it shows, and how much it counts."""

    path: Path
    sha256: str
    size: tuple[int, int]  # (width, height) px
    caption: str  # with the identifier as typed
    focus: tuple[float, ...]  # (x0, y0, x1, y1) of the subject, fractions of the photo
    weight: float


def read(folder: Path) -> Sequence[Sample]:
    """The samples of the prep artifact in `folder`, in order; Damaged when one is unreadable."""
    try:
        lines = (folder / "samples.jsonl").read_bytes().splitlines()
        return [_sample(folder, json.loads(line)) for line in lines]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as e:
        raise Damaged(f"{folder / 'samples.jsonl'} is damaged", why=repr(e)) from None


def _sample(folder: Path, line: dict) -> Sample:
    return Sample(
        path=folder / line["file"],
        sha256=line["sha256"],
        size=(line["size"][0], line["size"][1]),
        caption=line["caption"],
        focus=tuple(line["focus"]),
        weight=float(line["weight"]),
    )
