"""Tensors of a base: where they lie in its files, and modules that are filled from there.

A module is built without memory, then each tensor is read to its own place, dtype and device. At no
time is more held than the module and one tensor, and nothing of the libraries' own loading runs: it
would open pickles, follow paths that a config names, and leave what is missing to chance.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Damaged, Usage
from dreamtune.formats import header

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# What a text encoder's file may hold beside its weights: buffers of older releases and the heads of
# the CLIP that it was cut from.
_SPARE = re.compile(r"(.*\.)?(position_ids|logit_scale|text_projection\.weight)")
# Names that changed: attention of autoencoders before diffusers 0.11, as in the files of SD 1.x.
_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: `offset` is its first byte, `shape` in row-major order."""

    path: Path
    offset: int
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    transposed: bool = False  # the module wants its transpose

    def turned(self) -> Stored:
        """Read as its transpose."""
        return dataclasses.replace(self, transposed=True)

    def reshaped(self, *shape: int) -> Stored:
        """The same bytes under another shape."""
        return dataclasses.replace(self, shape=shape)

    def rows(self, number: int, of: int) -> Stored:
        """One of `of` equal slices along the first dimension."""
        first, *rest = self.shape
        part = dataclasses.replace(self, shape=(first // of, *rest))
        return dataclasses.replace(part, offset=self.offset + number * part.size)

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * header.BITS[self.dtype] // 8

    @property
    def final_shape(self) -> tuple[int, ...]:
        """The shape that `read` gives."""
        return self.shape[::-1] if self.transposed else self.shape

    def read(self) -> Tensor:
        """The tensor, in memory of its own. Damaged when the file ends too early."""
        import torch

        tensor = torch.empty(self.shape, dtype=dtypes()[self.dtype])
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            view = tensor.reshape(-1).view(torch.uint8).numpy().data
            while view:
                if not (count := file.readinto(view)):
                    raise Damaged(f"{self.path} was cut off while it was read")
                view = view[count:]
        return tensor.T.contiguous() if self.transposed else tensor


def stored(path: Path) -> dict[str, Stored]:
    """All tensors of a safetensors file, by name; the header is checked, no tensor is read."""
    found = header.read_header(path)
    return {
        name: Stored(path, found.body_offset + info.start, info.dtype, info.shape)
        for name, info in found.tensors.items()
    }


def current(name: str) -> str:
    """A tensor's name as libraries say it today, where files of an older release have another."""
    for new, old in _OLD.items():
        if f".attentions.0.{old}." in name:
            name = name.replace(f".{old}.", f".{new}.")
    bare = name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
    return f"text_model.{name}" if bare else name


def is_spare(name: str) -> bool:
    """Whether a text encoder can do without a tensor of this name."""
    return bool(_SPARE.fullmatch(name))


def load(
    place: str, kind: Any, config: Mapping[str, Any], tensors: Mapping[str, Stored],
    dtype: torch.dtype, device: torch.device | str = "cpu",
) -> nn.Module:  # fmt: skip
    """A frozen module of class `kind`, every weight of it from the files.

    place: what messages call it. Damaged when a weight is missing, left over or of another shape.
    """
    module = _empty(place, kind, config)
    wanted = module.state_dict()
    names = _match(wanted, tensors)
    tied = getattr(module, "_tied_weights_keys", None) or {}
    _check_names(place, wanted, names, tensors, tied)
    _check_shapes(place, wanted, {name: tensors[old] for name, old in names.items()})
    state = {}
    for name, old in names.items():
        tensor = tensors[old].read()
        kept = _kept_dtype(kind, name, dtype) if tensor.is_floating_point() else tensor.dtype
        state[name] = tensor.to(device=device, dtype=kept)
    module.load_state_dict(state, strict=False, assign=True)
    if tied:
        module.tie_weights()  # type: ignore[operator]
    return module.to(device).eval().requires_grad_(False)  # buffers that no file holds move too


def dtypes() -> dict[str, torch.dtype]:
    """torch's type for safetensors' name of it."""
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip


def _empty(place: str, kind: Any, config: Mapping[str, Any]) -> nn.Module:
    """The module that a config describes, its parameters without memory."""
    from accelerate import init_empty_weights

    try:
        with init_empty_weights():
            if hasattr(kind, "config_class"):  # transformers
                return kind(kind.config_class.from_dict(dict(config)))
            return kind.from_config(dict(config))
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, AttributeError) as e:
        why = (str(e).strip() or repr(e)).splitlines()[0]
        raise Damaged(f"the config of {place} describes no {kind.__name__}", why=why) from None


def _match(wanted: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, str]:
    """Names of the module to names of the file, which can be those of an older release."""
    found = {}
    for name in wanted:
        bare = name.removeprefix("text_model.")
        names = [name, bare, f"text_model.{bare}"]
        names += [name.replace(f".{new}.", f".{old}.") for new, old in _OLD.items()]
        if old := next((n for n in names if n in tensors), ""):
            found[name] = old
    return found


def _check_names(
    place: str, wanted: Mapping[str, Any], names: Mapping[str, str],
    tensors: Mapping[str, Any], tied: Mapping[str, str],
) -> None:  # fmt: skip
    """Every weight is there, or shared with one that is, and no other."""
    if missing := sorted(n for n in wanted if n not in names and tied.get(n) not in names):
        why = f"{len(missing)} weights are not in its files, such as {missing[0]}"
        raise Damaged(f"{place} is not complete", why=why, fix="download or copy it again")
    over = tensors.keys() - set(names.values())
    if left := sorted(n for n in over if not _SPARE.fullmatch(n)):
        why = f"{len(left)} weights of its files belong nowhere, such as {left[0]}"
        raise Damaged(f"{place} is not what its config says", why=why)


def _check_shapes(place: str, wanted: Mapping[str, Tensor], found: Mapping[str, Stored]) -> None:
    for name, tensor in found.items():
        if tensor.final_shape != tuple(wanted[name].shape):
            why = f"{name} is {[*tensor.final_shape]} in its file, {[*wanted[name].shape]} there"
            raise Damaged(f"{place} is not what its config says", why=why)
        if not (tensor.dtype in dtypes() and dtypes()[tensor.dtype].is_floating_point):
            raise Usage(f"{place} holds {tensor.dtype} numbers", why="nothing can train on them")


def _kept_dtype(kind: Any, name: str, dtype: torch.dtype) -> torch.dtype:
    """fp32 for what a library keeps in fp32 when the rest is fp16 (T5 overflows), else `dtype`."""
    import torch

    strict = getattr(kind, "_keep_in_fp32_modules_strict", None) or ()
    halves = [*strict, *(getattr(kind, "_keep_in_fp32_modules", None) or ())]
    kept = halves if dtype == torch.float16 else strict
    return torch.float32 if set(name.split(".")) & set(kept) else dtype
