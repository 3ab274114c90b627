"""A model as one file in the names of Stability's code, which every user interface reads."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import console, fsops
from dreamtune.bases import weights
from dreamtune.bases.folder import MODELS
from dreamtune.bases.single import Single
from dreamtune.errors import Usage
from dreamtune.formats import architecture, checkpoint, ldm
from dreamtune.formats.checkpoint import ONE, TWO, XL, Kind, Place
from dreamtune.stages.models import (
    Changed,
    Model,
    Pending,
    Readable,
    Tensors,
    Tuned,
    Written,
    named,
    pending,
)

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS = "text_model.embeddings.position_ids"
# Settings in which bases of one kind differ, and which change nothing that is computed.
LOOSE = {"sample_size", "projection_dim", "bos_token_id", "eos_token_id", "upcast_attention"}
OPEN_CLIP = "gelu"  # its activation; CLIP's own is quick_gelu


def write(model: Model, out: Path, precision: str, describe: Callable[..., Any] | None) -> Written:
    """All tensors in Stability's names. A file's own that belong to no part stay as they are."""
    own = model.base if isinstance(model, Tuned) else model
    if isinstance(own, Single):
        tensors, counts = _patched(model, own, precision)
    else:
        tensors, counts = _translated(model, precision)
    fsops.write_safetensors(out, tensors, {"format": "pt"}, describe)  # whole or not at all
    return Written([out], counts)


def _patched(model: Model, own: Single, precision: str) -> tuple[Tensors, Counter[str]]:
    """Every tensor of the file under its own name, put together from what the parts are now."""
    found: Tensors = {}
    counts: Counter[str] = Counter()
    parts = {part: named(model, part) for part, kind in own.parts.items() if kind in MODELS}
    for key, (stored, places) in own.contents().items():
        now = [(place, parts[place.part][weights.current(place.name)]) for place in places]
        same = not any(isinstance(tensor, Changed) for _, tensor in now)
        counts["kept" if same else "changed"] += 1
        tensor = stored if same else _Joined(now, stored.shape)
        found[key] = pending(key, tensor, precision)
    return found, counts


def _translated(model: Model, precision: str) -> tuple[Tensors, Counter[str]]:
    """A folder's tensors under Stability's names. Usage when there are none for its family."""
    kind, blocks, vae = _layout(model)
    grouped: dict[str, list[tuple[Place, Readable]]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for part in ("unet", "vae", *(text.part for text in kind.text)):
        for name, tensor in named(model, part).items():
            if part.startswith("text") and not _belongs(kind, part, name):
                counts["left out"] += 1
                continue
            found = checkpoint.key_of(kind, Place(part, name), blocks, vae)
            if found is None:
                raise Usage(f"{part}.{name} has no place in one file", fix="write a folder")
            grouped[found[0]].append((found[1], tensor))
            counts["changed" if isinstance(tensor, Changed) else "kept"] += 1
    tensors: Tensors = {
        key: pending(key, _Joined(sorted(now, key=lambda n: n[0].third or 0)), precision)
        for key, now in grouped.items()
    }
    tensors |= _positions(kind, tensors) | _unused(kind, tensors) | _noise(model, kind)
    _check_told(model, kind, tensors)
    return tensors, counts


def _noise(model: Model, kind: Kind) -> Tensors:
    """The empty tensors that tell v-prediction and a noise schedule that ends in pure noise."""
    import torch

    config = model.config("scheduler")
    is_v = config.get("prediction_type") == "v_prediction"
    if kind is TWO and not is_v:
        console.warn(
            f"{model.name} predicts noise, and no file of 2.x can say so: "
            "tell `--prediction epsilon` to train on it, or the like to other programs"
        )
    marks = {"v_pred": is_v and kind is not TWO, "ztsnr": config.get("rescale_betas_zero_snr")}
    return {
        mark: Pending(torch.float32, (0,), lambda: torch.zeros(0))
        for mark, holds in marks.items()
        if holds
    }


def _unused(kind: Kind, tensors: Tensors) -> Tensors:
    """The last layer of 2.x's text encoder, which nothing uses and every file has: a stand-in."""
    made: Tensors = {}
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    for text in (text for text in kind.text if text.unused):
        layer = f"{text.prefix}transformer.resblocks."
        last = max(checkpoint.numbers(shapes, re.escape(layer) + r"(\d+)\."))
        own = f"{layer}{last}."
        made |= {
            f"{layer}{last + 1}.{key.removeprefix(own)}": tensor
            for key, tensor in tensors.items()
            if key.startswith(own)
        }
    return made


def _check_told(model: Model, kind: Kind, tensors: Tensors) -> None:
    """Usage for a model that programs would take for another: in one file only shapes tell."""
    told = architecture.configs(kind, {key: tensor.shape for key, tensor in tensors.items()})
    for part in ("unet", "vae", *(text.part for text in kind.text)):
        own = model.config(part)
        for name, value in told[part].items():
            if name not in LOOSE and _plain(own.get(name, value)) != _plain(value):
                raise Usage(
                    f"{model.name} cannot be one file",
                    why=f"programs would take the {name} of its {part} for {value},"
                    f" and it is {own[name]}",
                    fix="give --out a folder",
                )


def _plain(value: Any) -> Any:
    """A setting as JSON has it; one for every level may be said once."""
    found = [*value] if isinstance(value, list | tuple) else value
    return found[0] if isinstance(found, list) and len({*found}) == 1 else found


def _layout(model: Model) -> tuple[Kind, ldm.Blocks, tuple[int, int]]:
    """Which of Stability's layouts a folder would have, and what its names depend on."""
    known = {kind.pipeline for kind in (ONE, TWO, XL)}
    if model.pipeline not in known:
        raise Usage(
            f"a {model.pipeline} cannot be written as one file yet",
            why="it can for Stable Diffusion 1.x, 2.x and XL",
            fix="give --out a folder",
        )
    kind = XL if model.pipeline == XL.pipeline else ONE
    if kind is ONE and model.config("text_encoder").get("hidden_act") == OPEN_CLIP:
        kind = TWO
    vae = model.config("vae")
    depth = len(vae["block_out_channels"]), int(vae.get("layers_per_block", 1))
    return kind, ldm.Blocks.of(model.config("unet")), depth


def spec(model: Model) -> str:
    """What metadata calls a model of these families, a key of formats.modelspec.BASES."""
    kind, _, _ = _layout(model)
    if kind is TWO:
        v = model.config("scheduler").get("prediction_type") == "v_prediction"
        return "sd2-768-v" if v else "sd2-512"
    return "sdxl" if kind is XL else "mini" if model.name == "mini" else "sd1"


def _belongs(kind: Kind, part: str, name: str) -> bool:
    """Whether a file of this kind has a text encoder's tensor: no spare ones, but for two."""
    if name == "text_projection.weight":
        return kind is XL and part == kind.text[1].part
    return not weights.is_spare(name) or (kind is ONE and name == POSITIONS)


def _positions(kind: Kind, tensors: Tensors) -> Tensors:
    """The buffer that SwarmUI knows SD 1.x by, where the folder has none any more."""
    import torch

    key = kind.text[0].prefix + POSITIONS
    if kind is not ONE or key in tensors:
        return {}
    count = tensors[f"{kind.text[0].prefix}text_model.embeddings.position_embedding.weight"].shape[
        0
    ]
    return {key: Pending(torch.int64, (1, count), lambda: torch.arange(count)[None])}


@dataclass(frozen=True)
class _Joined:
    """A single file's tensor, of those of the parts: one, or q, k and v."""

    now: list[tuple[Place, Readable]]
    shape: tuple[int, ...] | None = None  # in the file, where there is one

    @property
    def dtype(self) -> str:
        return self.now[0][1].dtype

    @property
    def final_shape(self) -> tuple[int, ...]:
        place, first = self.now[0][0], self.now[0][1].final_shape
        if self.shape is not None:
            return self.shape
        if place.third is not None:
            return (sum(t.final_shape[0] for _, t in self.now), *first[1:])
        if place.transposed:
            return first[::-1]
        return (*first, 1, 1) if place.linear and len(first) == 2 else first

    def read(self) -> Tensor:
        import torch

        place = self.now[0][0]
        if place.third is not None:
            return torch.cat([tensor.read() for _, tensor in self.now])
        tensor = self.now[0][1].read()
        return (tensor.T if place.transposed else tensor).reshape(self.final_shape)
