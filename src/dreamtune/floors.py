"""Library versions below which reading a file of somebody else's can run its code.

The floors are those of pyproject.toml, as they were installed; pip keeps to them, and what was
installed by other means is checked here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from .errors import Unsafe

READERS = {"accelerate", "diffusers", "peft", "pillow", "safetensors", "torch", "transformers"}


@dataclass(frozen=True)
class Library:
    """A library that dreamtune needs: what is wanted, and what is there ("" for nothing)."""

    name: str
    wanted: str
    found: str
    fits: bool

    @property
    def reads(self) -> bool:
        """Whether it reads files that others made."""
        return self.name in READERS


def libraries() -> Iterator[Library]:
    """Every library that pyproject.toml asks for; none is imported."""
    from packaging.requirements import Requirement

    try:
        asked = metadata.requires("dreamtune") or []
    except metadata.PackageNotFoundError:  # run from its sources
        return
    for requirement in map(Requirement, asked):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found = ""
        fits = bool(found) and requirement.specifier.contains(found, prereleases=True)
        yield Library(requirement.name, str(requirement.specifier), found, fits)


@functools.cache
def require() -> None:
    """Unsafe, naming each library that is too old to read other people's files with."""
    old = [x for x in libraries() if x.reads and not x.fits]
    if old:
        named = ", ".join(f"{x.name} {x.found or 'missing'} ({x.wanted} is needed)" for x in old)
        fix = " ".join(f"'{x.name}{x.wanted}'" for x in old)
        raise Unsafe(f"too old to read other people's files: {named}", fix=f"pip install {fix}")
