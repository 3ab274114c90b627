"""What a user knows of a base better than its files do.

Single files carry no configs, and folders are made from them: whether a model predicts v, and on
which noise, is often recorded wrong. What is said here holds for training and for sampling.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune.bases import names
from dreamtune.bases.folder import Folder
from dreamtune.errors import Usage

if TYPE_CHECKING:
    from dreamtune.bases import Base, Tiny

VAE = "vae"


@dataclass(frozen=True)
class Overrides:
    """None is what the files say.

    prediction: "epsilon" or "v_prediction"
    zero_snr:   whether the noise schedule ends in pure noise (arXiv:2305.08891)
    clip_skip:  text is read at CLIP's last layer but n - 1, as A1111 and kohya count; 1 is the one
                that the family reads
    vae:        a base whose autoencoder is used, or a folder with nothing else
    """

    prediction: str | None = None
    zero_snr: bool | None = None
    clip_skip: int | None = None
    vae: str | None = None

    @classmethod
    def of(cls, table: Any) -> Overrides:
        """From a settings table that has them among others."""
        return cls(**{field.name: getattr(table, field.name) for field in dataclasses.fields(cls)})

    def over(self, other: Overrides) -> Overrides:
        """These, and the other's where these say nothing."""
        mine = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return dataclasses.replace(other, **mine)


@dataclass(frozen=True)
class Overridden:
    """A base with something said of it."""

    base: Base | Tiny
    said: Overrides
    vae: Base | None = None  # whose autoencoder is used

    @property
    def name(self) -> str:
        return self.base.name

    def fingerprint(self, part: str = "") -> str:
        """Hash of what is used of the base and of what is said of it, or of one part."""
        if part == VAE and self.vae:
            return self.vae.fingerprint(VAE)
        plain, said = self.base.fingerprint(part), self.record()
        if part:
            reads = part.startswith("text_encoder") and self.said.clip_skip
            said = {"clip_skip": self.said.clip_skip} if reads else {}
        text = json.dumps([plain, said], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest() if said else plain

    def record(self) -> dict[str, Any]:
        """What an adapter must say so that all this can be found again, without paths."""
        said = {k: v for k, v in dataclasses.asdict(self.said).items() if v is not None}
        if self.vae:
            said |= {"vae": self.vae.name, "vae_hash": self.vae.fingerprint(VAE)}
        return {"base_hash": self.base.fingerprint(), **said}

    def remember(self) -> None:
        """Note where the autoencoder lies."""
        if self.vae:
            names.remember(self.vae.name, self.vae.path, self.vae.fingerprint(VAE))


def override(base: Base | Tiny, said: Overrides) -> Base | Tiny | Overridden:
    """The base with what is said of it; the base itself when nothing is."""
    if said == Overrides():
        return base
    return Overridden(base, said, find_vae(said.vae) if said.vae else None)


def recorded(record: Mapping[str, Any]) -> Overrides:
    """What `Overridden.record` gave; Overrides() for an empty record."""
    known = {field.name for field in dataclasses.fields(Overrides)}
    said = {k: v for k, v in record.items() if k in known}
    places = names.used(record.get("vae_hash", ""))
    if place := next((p for p in places if p.exists()), None):
        said[VAE] = str(place)
    return Overrides(**said)


def find_vae(text: str) -> Base:
    """The base whose part "vae" is meant, checked. Usage when there is none; else as bases.find."""
    from dreamtune import bases

    path = Path(text).expanduser()
    if (path / "config.json").is_file():
        alone = Folder(path.resolve().name, path, alone="vae")
        alone.check()
        return alone
    if not path.exists() and (place := names.used_as(text)):
        return find_vae(str(place))  # as a recipe names it
    base = bases.find(text)
    if isinstance(base, bases.Tiny) or VAE not in base.parts:
        raise Usage(f"{text} has no autoencoder", fix="give --vae a base, or a folder with a VAE")
    return base
