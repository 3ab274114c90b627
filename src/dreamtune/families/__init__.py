"""Base models: one file per family, and the one way to open a base.

A base is named as people have it: `mini` (bundled), `tiny:sd` (random weights, for trials and
tests), a folder in the diffusers layout, or a hub id. Which family it belongs to is read from its
`model_index.json`; each family says which pipeline classes are its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreamtune import plugins
from dreamtune.errors import Damaged, Network, NotFound, Unsafe, suggest
from dreamtune.fsops import hash_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreamtune.diffusion import Process
    from dreamtune.families._text import TextStack

ASSETS = Path(__file__).parents[1] / "assets"
BUNDLED = ("mini",)


class Family(Protocol):
    """What training and sampling need to know of a base model."""

    name: str
    base: str  # as the user named it
    pipelines: tuple[str, ...]  # diffusers pipeline classes that are this family
    spec: str  # what metadata of adapters calls it, a key of formats.modelspec.BASES
    sampler: str  # A1111's name of what `scheduler` does
    lora_layout: str  # a key of formats.kohya.LAYOUTS
    denoiser_name: str  # "unet" or "transformer", its folder in the diffusers layout
    denoiser: Any
    vae: Any
    text: list[TextStack]
    scheduler: Any
    process: Process
    lora_targets: dict[str, list[str]]  # role -> module suffixes
    resolution: int  # px, what the base was trained at
    multiple: int  # px, sizes must be a multiple of this

    @classmethod
    def load(cls, base: str, folder: Path, dtype: torch.dtype) -> Family: ...

    @classmethod
    def tiny(cls) -> Family: ...

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...
    def decode_image(self, latents: Tensor) -> Tensor: ...
    def encode_text(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]: ...
    def condition(self, text: dict[str, Tensor], meta: Tensor) -> dict[str, Tensor]: ...
    def predict(self, xt: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor: ...
    def pipeline(self) -> Any: ...
    def prompt_arguments(
        self, text: dict[str, Tensor], negative: dict[str, Tensor]
    ) -> dict[str, Tensor]: ...


def load(base: str, dtype: torch.dtype) -> Family:
    """The base that `base` names. NotFound, Network, Damaged or Unsafe when it cannot be had."""
    if base.startswith("tiny:"):
        family = plugins.load(__name__, base.removeprefix("tiny:")).Family.tiny()
        for module in (family.denoiser, *(stack.encoder for stack in family.text)):
            module.to(dtype)
        return family
    folder = locate(base)
    return _family_of(folder).load(base, folder, dtype)


def locate(base: str) -> Path:
    """The local folder of a base, fetched from the hub when `base` is a hub id."""
    if base in BUNDLED:
        return ASSETS / base
    folder = Path(base)
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists():
        raise NotFound(
            f"{base} is no diffusers model",
            why="it has no model_index.json",
            fix="give a folder in the diffusers layout",
        )
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        return _fetch(base)
    known = [*BUNDLED, *(f"tiny:{name}" for name in plugins.names(__name__))]
    raise NotFound(
        f"no base {base!r}",
        why=f"it is neither a folder nor one of {', '.join(known)}",
        fix=suggest(base, known) or "give a folder in the diffusers layout or a hub id owner/name",
    )


@functools.cache
def fingerprint(base: str, part: str = "") -> str:
    """Hash of a base's weights and vocabularies, or of one part of it, such as "vae"."""
    if base.startswith("tiny:"):
        return f"{base}/{part}"
    folder = locate(base)
    # Two levels of glob, since rglob would pass over a part that is a linked folder.
    found = sorted([*folder.glob("*"), *folder.glob("*/*")])
    files = [p for p in found if p.suffix in (".safetensors", ".json", ".txt")]
    lines = [
        f"{path.relative_to(folder).as_posix()} {hash_file(path)}"
        for path in files
        if not part or path.relative_to(folder).parts[0] == part
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def move(family: Family, device: torch.device) -> None:
    """Bring every part of a base to a device."""
    for module in (family.denoiser, family.vae, *(stack.encoder for stack in family.text)):
        module.to(device)


def _fetch(base: str) -> Path:
    """The snapshot of a hub repository: safetensors and JSON only, half downloads resume."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.txt", "*.safetensors", "*.model"]
    try:
        return Path(snapshot_download(base, allow_patterns=wanted))
    except LocalEntryNotFoundError:
        raise Network(
            f"cannot fetch {base}",
            why="the hub cannot be reached and nothing of it is cached here",
            fix="check the connection, or give a local folder",
        ) from None
    except HfHubHTTPError as e:
        why = str(e).strip().splitlines()[0]
        fix = "check the name; for a gated model accept its licence and run `hf auth login`"
        raise Network(f"cannot fetch {base}", why=why, fix=fix) from None


def _family_of(folder: Path) -> Any:
    """The Family class whose pipelines include that of `folder`."""
    index = folder / "model_index.json"
    try:
        pipeline = json.loads(index.read_bytes())["_class_name"]
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{index} is damaged", why="it names no pipeline class") from None
    families = [plugins.load(__name__, name).Family for name in plugins.names(__name__)]
    for family in families:
        if pipeline in family.pipelines:
            return family
    known = sorted(p for f in families for p in f.pipelines)
    raise Unsafe(
        f"{folder} wants the pipeline {pipeline!r}",
        why=f"dreamtune knows {', '.join(known)}",
        fix="use a base of one of these families",
    )
