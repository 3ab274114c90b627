"""All that is learned from one file in one go, inside a decoding worker."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import fsops
from . import quality
from .photos import Rejected, Seeing, see

TOWER_SIDE = 224
MOST_BYTES = 512 << 20  # of one file


@dataclass(frozen=True)
class Look:
    """One file to be looked at. `payload` is where the cleaned picture goes, less its ending."""

    file: Path
    payload: Path
    seeing: Seeing


@dataclass
class Seen:
    """What was found: `picture` is the written file's name, `tower` 224 x 224 x 3 uint8.

    size: in pixels, of what is kept; original, bytes: of the file as it came
    """

    sha256: str
    picture: str
    bytes: int
    size: tuple[int, int]
    original: tuple[int, int]
    quality: quality.Quality
    fingerprint: NDArray[np.uint8]
    tower: NDArray[np.uint8]
    notes: list[str] = field(default_factory=list)


def examine(look: Look) -> Seen:
    """Read, decode, measure, and write the cleaned picture. Raises Rejected."""
    data = read(look.file)
    photo = see(data, look.seeing, look.file.name)
    ending, payload = photo.encode()
    picture = look.payload.with_name(f"{look.payload.name}.{ending}")
    fsops.put(picture, payload)
    smaller = shrunk(photo.image)
    grey = quality.small(smaller)
    return Seen(
        sha256=hashlib.sha256(payload).hexdigest(),
        picture=picture.name,
        bytes=len(data),
        size=photo.image.size,
        original=photo.size,
        quality=quality.measure(grey),
        fingerprint=quality.fingerprint(grey),
        tower=for_tower(smaller),
        notes=photo.notes,
    )


def shrunk(image: Image.Image) -> Image.Image:
    """A whole fraction of the size, large enough for the tower and for measuring.

    Averaging whole blocks is far quicker than a filter over every pixel of a phone's photo.
    """
    short, long = sorted(image.size)
    factor = min(short * 4 // (5 * TOWER_SIDE), long * 4 // (5 * quality.GREY_SIDE))
    return image.reduce(factor) if factor > 1 else image


def for_tower(image: Image.Image) -> NDArray[np.uint8]:
    """The whole picture squeezed into 224 x 224: nothing at the edges is lost."""
    side = (TOWER_SIDE, TOWER_SIDE)
    return np.asarray(image.resize(side, Image.Resampling.BICUBIC))


def read(file: Path, max_bytes: int = MOST_BYTES) -> bytes:
    """A regular file's bytes. Never waits for a pipe or a device that took a photo's name."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as e:
        raise Rejected("file.unreadable", os.strerror(e.errno or 0)) from None
    with os.fdopen(handle, "rb") as stream:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise Rejected("file.special", "not a regular file")
        if facts.st_size > max_bytes:
            raise Rejected("file.too_large", f"{facts.st_size:,} bytes")
        try:
            return stream.read(max_bytes + 1)
        except OSError as e:
            raise Rejected("file.unreadable", os.strerror(e.errno or 0)) from None
