"""What can be said of a base without loading it: size, licence, memory by method, where it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune.bases.catalogue import KNOWN, Known
from dreamtune.bases.folder import MODELS

if TYPE_CHECKING:
    from dreamtune.bases import Base

DENOISERS = ("unet", "transformer")


@dataclass(frozen=True)
class Facts:
    """A base, here or not. None is: not known without it."""

    name: str
    where: str  # "built in", "here", "registered" or "not here"
    family: str | None = None
    pipeline: str | None = None
    repo: str | None = None
    revision: str | None = None
    licence: str | None = None
    gated: bool = False
    resolution: int | None = None  # px
    size: int | None = None  # bytes on disk, or to fetch
    path: Path | None = None
    parameters: dict[str, int] = field(default_factory=dict)  # denoiser, text, vae
    fingerprint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        found = dataclasses.asdict(self) | {"memory": memory(self.parameters)}
        return found | {"path": str(self.path) if self.path else None}


def of_known(name: str, known: Known, path: Path | None) -> Facts:
    """A base of the catalogue; path: where it is, if it is here."""
    return Facts(
        name,
        "here" if path else "not here",
        known.family,
        repo=known.repo,
        revision=known.revision,
        licence=known.licence,
        gated=known.gated,
        resolution=known.resolution,
        size=known.size,
        path=path,
        parameters={"denoiser": known.denoiser, "text": known.text, "vae": known.vae},
    )


def of_base(base: Base, where: str, family: str) -> Facts:
    """A base that is here, from its files; what a catalogue knows is added."""
    counted, size = _count(base)
    said = of_known(base.name, KNOWN[base.name], base.path) if base.name in KNOWN else None
    return dataclasses.replace(
        said or Facts(base.name, where),
        where=where,
        family=family,
        pipeline=base.pipeline,
        path=base.path,
        resolution=_resolution(base) or (said.resolution if said else None),
        parameters=counted,
        size=size,
        fingerprint=base.fingerprint(),
    )


def memory(parameters: Mapping[str, int]) -> dict[str, int]:
    """Bytes of weights, gradients and optimizer on a GPU, by method, at bf16; a picture's
    activations come on top, and `train` measures these before its first step.

    Encoding holds the whole base; training holds what runs in the loop. Trained weights take 16
    bytes each: value, gradient and two moments in fp32.
    """
    if not parameters:
        return {}
    denoiser, text, vae = (parameters[role] for role in ("denoiser", "text", "vae"))
    encoding = 2 * (denoiser + text) + 4 * vae
    loops = {"embedding": 2 * (denoiser + text), "lora": 2 * denoiser, "dreambooth": 16 * denoiser}
    encodings = {"dreambooth": encoding + 2 * denoiser}  # what will be trained is in fp32
    return {m: max(loop, encodings.get(m, encoding)) for m, loop in loops.items()}


def _count(base: Base) -> tuple[dict[str, int], int]:
    """Parameters by role, and bytes of weights."""
    counted, size = dict.fromkeys(("denoiser", "text", "vae"), 0), 0
    for part, kind in base.parts.items():
        if kind not in MODELS:
            continue
        role = "denoiser" if part in DENOISERS else "vae" if part == "vae" else "text"
        for tensor in base.tensors(part).values():
            counted[role] += math.prod(tensor.shape)
            size += tensor.size
    return counted, size


def _resolution(base: Base) -> int | None:
    """Size that a denoiser was trained for, px; FLUX's config does not say."""
    for part in DENOISERS:
        size = base.config(part).get("sample_size") if part in base.parts else None
        if isinstance(size, int):
            levels = base.config("vae").get("block_out_channels", ())
            return int(size * 2 ** (len(levels) - 1))
    return None
