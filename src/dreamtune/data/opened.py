"""One picture that somebody names, looked at as carefully as a folder of photos is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreamtune.errors import NotFound, Usage

from . import decode
from .examine import read
from .photos import Rejected, Seeing, see

if TYPE_CHECKING:
    from PIL import Image

SECONDS, MEMORY = 20.0, 2 << 30  # for decoding it


@dataclass(frozen=True)
class Opened:
    """An upright sRGB picture, and the hash of the file that it came from."""

    image: Image.Image
    sha256: str


def open_picture(path: Path, background: str) -> Opened:
    """Decode a file in a process of its own. NotFound, or Usage with what is wrong with it.

    background: what shows through transparency, a key of photos.BACKGROUNDS
    """
    if not path.exists():
        raise NotFound(f"there is no picture {path}")
    jobs = [(path, background)]
    ((_, found),) = decode.run(_open, jobs, workers=1, seconds=SECONDS, memory=MEMORY)
    if isinstance(found, Rejected):
        raise Usage(f"{path} cannot be used", why=f"{found.detail} ({found.code})")
    return found


def _open(job: tuple[Path, str]) -> Opened:
    path, background = job
    data = read(path)
    seeing = Seeing(max_side=4096, min_side=16, max_aspect=8.0, background=background)
    return Opened(see(data, seeing, path.name).image, hashlib.sha256(data).hexdigest())
