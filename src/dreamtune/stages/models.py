"""Whole models to write: a base, perhaps with some tensors changed, read one by one.

So the largest model needs memory for two of its tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dreamtune.bases import weights
from dreamtune.bases.folder import Folder
from dreamtune.bases.single import Single
from dreamtune.errors import NonFinite, Usage

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Readable(Protocol):
    """A tensor that lies in a file, perhaps changed on the way: what bases.weights.Stored has."""

    @property
    def dtype(self) -> str: ...  # as safetensors names it
    @property
    def final_shape(self) -> tuple[int, ...]: ...
    def read(self) -> Tensor: ...


@dataclass(frozen=True)
class Changed:
    """A tensor with something done to it after it is read; its shape and dtype stay."""

    stored: Readable
    change: Callable[[Tensor], Tensor]

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    @property
    def final_shape(self) -> tuple[int, ...]:
        return self.stored.final_shape

    def read(self) -> Tensor:
        return self.change(self.stored.read())


class Model(Protocol):
    """What there is to write of a base: bases.Folder and bases.Single have it, and `Tuned`."""

    @property
    def name(self) -> str: ...
    @property
    def pipeline(self) -> str: ...
    @property
    def parts(self) -> dict[str, str]: ...
    def config(self, part: str) -> dict[str, Any]: ...
    def tensors(self, part: str) -> Mapping[str, Readable]: ...
    def tokenizer(self, part: str, kind: Any) -> Any: ...


@dataclass(frozen=True)
class Tuned:
    """A base of which some tensors are others, by part and name."""

    base: Folder | Single
    own: dict[str, dict[str, Readable]]

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def pipeline(self) -> str:
        return self.base.pipeline

    @property
    def parts(self) -> dict[str, str]:
        return self.base.parts

    def config(self, part: str) -> dict[str, Any]:
        return self.base.config(part)

    def tensors(self, part: str) -> Mapping[str, Readable]:
        return {**named(self.base, part), **self.own.get(part, {})}

    def tokenizer(self, part: str, kind: Any) -> Any:
        return self.base.tokenizer(part, kind)


def named(model: Model, part: str) -> dict[str, Readable]:
    """A part's tensors by the names of today, whatever release wrote its files."""
    return {weights.current(name): tensor for name, tensor in model.tensors(part).items()}


@dataclass(frozen=True)
class Pending:
    """A tensor that fsops makes when its turn to be written comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


Tensors = dict[str, Pending]


@dataclass
class Written:
    """What became of a model's tensors: "changed", "kept", and what has no place there."""

    paths: list[Path]
    counts: Counter[str]


def counted(tensors: Iterable[Readable]) -> Counter[str]:
    """How many are changed and how many are kept."""
    return Counter("changed" if isinstance(t, Changed) else "kept" for t in tensors)


def pending(name: str, tensor: Readable, precision: str) -> Pending:
    """The tensor as it is to be written. NonFinite, when it is made, for what does not fit."""
    import torch

    if tensor.dtype not in weights.dtypes():
        raise Usage(f"{name} holds {tensor.dtype} numbers", why="nothing here can copy them")
    dtype = own = weights.dtypes()[tensor.dtype]
    wanted = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision in wanted and own.is_floating_point:
        dtype = wanted[precision]

    def make() -> Tensor:
        found = tensor.read()
        cast = found.to(dtype)
        if found.is_floating_point() and (found.isfinite() & ~cast.isfinite()).any():
            largest = float(found.float().abs().max())
            raise NonFinite(
                f"{name} does not fit into {str(dtype).removeprefix('torch.')}",
                why=f"its largest value would be {largest:g}",
                fix="use --precision fp32 or bf16, or a smaller weight",
            )
        return cast

    return Pending(dtype, tuple(tensor.final_shape), make)
