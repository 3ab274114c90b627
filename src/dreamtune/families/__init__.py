"""What dreamtune knows of base models: one file per family, each with a `Family` class.

Which family a base belongs to is decided by the diffusers pipeline that it is for; each family says
which pipeline classes are its own, and of which classes its parts are.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from dreamtune import bases, floors, plugins
from dreamtune.bases import Base, Found, Tiny
from dreamtune.bases.overrides import Overridden, Overrides
from dreamtune.errors import Usage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreamtune.diffusion import Process
    from dreamtune.families._text import TextStack

# Where it is installed the libraries import it, and it tells of kernels that nobody asked for.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


class Family(Protocol):
    """What training and sampling need to know of a base model."""

    name: str
    base: str  # as the user named it
    pipelines: tuple[str, ...]  # diffusers pipeline classes that are this family
    parts: dict[str, Any]  # part -> class of it, of all that have weights
    optional: tuple[str, ...]  # parts that a base can lack
    spec: str  # what metadata of adapters calls it, a key of formats.modelspec.BASES
    sampler: str  # A1111's name of what `scheduler` does
    lora_layout: str  # a key of formats.kohya.LAYOUTS
    reads_chunks: bool  # whether a prompt may be longer than its encoder takes at once
    distilled: bool  # from guidance: it may be told the scale, and takes no negative prompt
    guidance: float | None  # what a base that is told the scale is told in training
    zeros_for_no_text: bool  # whether no negative prompt means zeros instead of an empty prompt
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
    def load(cls, base: Base, dtype: torch.dtype, device: torch.device | str) -> Family: ...

    @classmethod
    def tiny(cls) -> Family: ...

    def override(self, said: Overrides) -> None:
        """Let what is said hold instead of what the files say; Usage for what cannot be trained."""

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...
    def decode_image(self, latents: Tensor) -> Tensor: ...
    def encode_text(
        self, tokens: dict[str, Tensor], weights: Mapping[str, Tensor] = ...
    ) -> dict[str, Tensor]:
        """weights: emphasis of the tokens by stack, (1, L) for B = 1 (`_text.emphasised`)."""

    def condition(self, text: dict[str, Tensor], meta: Tensor) -> dict[str, Tensor]: ...
    def predict(self, xt: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor: ...
    def times(self, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        """Arguments of `set_timesteps` that the pipeline gives for size (w, h): mu, sigmas."""

    def pipeline(self) -> Any: ...


def load(base: Found | str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Family:
    """A base, or what bases.find makes of a name, on a device: frozen, in `dtype`, VAE in fp32."""
    floors.require()
    base = bases.find(base) if isinstance(base, str) else base
    whole = base if isinstance(base, Overridden) else Overridden(base, Overrides())
    family = _load(whole.base, dtype, device)
    if whole.vae:
        family.vae = _other_vae(family, whole.vae, device)
    family.override(whole.said)
    family.process = family.process.to(device)
    return family


def _load(base: Base | Tiny, dtype: torch.dtype, device: torch.device | str) -> Family:
    kind = of(base)
    if not isinstance(base, Tiny):
        loaded: Family = kind.load(base, dtype, device)
        return loaded
    family: Family = kind.tiny()
    family.vae.to(device)
    for module in (family.denoiser, *(stack.encoder for stack in family.text)):
        module.to(device, dtype)
    return family


def _other_vae(family: Family, base: Base, device: torch.device | str) -> Any:
    """The autoencoder of another base, in fp32. Usage when its latents are of another shape."""
    import torch

    own, other = family.vae, base.load("vae", type(family.vae), torch.float32, device)
    facts = [(len(v.config.block_out_channels), v.config.latent_channels) for v in (own, other)]
    if facts[0] != facts[1]:
        raise Usage(
            f"the autoencoder of {base.name} is not for {family.base}",
            why=f"its latents have {facts[1][1]} channels, and {facts[0][1]} are read",
            fix="use one that was made for this kind of base",
        )
    return other


def release(family: Family, text: bool, keep: bool, vae: bool = True) -> None:
    """With `vae` the autoencoder and, with `text`, the text encoders leave the device: all is
    encoded.

    keep: they wait in the CPU's memory for `recalled`; else they are gone, tokenizers apart.
    """
    if keep:
        autoencoder = [family.vae] if vae else []
        for module in [*autoencoder, *(stack.encoder for stack in family.text if text)]:
            module.to("cpu")
        return
    if vae:
        family.vae = None
    for stack in family.text if text else ():
        stack.encoder = None


@contextlib.contextmanager
def recalled(family: Family) -> Iterator[None]:
    """For a while, what was released and kept is where the denoiser is."""
    device = family.denoiser.device
    modules = [family.vae, *(stack.encoder for stack in family.text)]
    away = [module for module in modules if module.device != device]
    try:
        for module in away:
            module.to(device)
        yield
    finally:
        for module in away:
            module.to("cpu")


def of(base: Found) -> Any:
    """The Family class of a base. Usage when there is none for its pipeline, or a part differs."""
    base = base.base if isinstance(base, Overridden) else base
    if isinstance(base, Tiny):
        return plugins.load(__name__, base.family).Family
    families = [plugins.load(__name__, name).Family for name in plugins.names(__name__)]
    for family in families:
        if base.pipeline in family.pipelines:
            _check_parts(base, family)
            return family
    raise Usage(
        f"{base.name} is for the pipeline {base.pipeline!r}",
        why="dreamtune knows " + ", ".join(sorted(p for f in families for p in f.pipelines)),
        fix="use a base of one of these families",
    )


def _check_parts(base: Base, family: Any) -> None:
    """A base has the parts that its family is made of, each of its class."""
    for part, kind in family.parts.items():
        found = base.parts.get(part)
        if found != kind.__name__ and not (found is None and part in family.optional):
            raise Usage(
                f"{base.name} is no {base.pipeline}",
                why=f"its {part} is {found or 'missing'}, and should be {kind.__name__}",
                fix="use the base as it was published",
            )
