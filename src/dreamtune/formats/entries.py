"""What the keys of an adapter file mean, before any tensor is read: the entries of a file.

A layout turns keys into entries; here entries become updates. So that a file can be described from
its header alone, nothing but `build` needs torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dreamtune.errors import Damaged
from dreamtune.formats.lora import Adapter, LoraWeights, Shape, Update, check_magnitude, checked

if TYPE_CHECKING:
    from torch import Tensor

Module = TypeVar("Module")

# The parts of one entry, in kohya's and LyCORIS' words; each kind with those that it must have.
NEEDED = {
    "lora": {"lora_down.weight", "lora_up.weight"},
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    "lokr": set[str](),  # either of a matrix and its factors: _lokr
    "full": {"diff"},
}
ALLOWED = {
    "lora": NEEDED["lora"] | {"lora_mid.weight", "alpha", "dora_scale", "magnitude"},
    "loha": NEEDED["loha"] | {"hada_t1", "hada_t2", "alpha", "dora_scale"},
    "lokr": {f"lokr_{w}{end}" for w in ("w1", "w2") for end in ("", "_a", "_b")}
    | {"lokr_t2", "alpha", "dora_scale"},
    "full": {"diff", "alpha"},
}


@dataclass(frozen=True)
class Entry:
    """One update of a file: what it is for, and the keys of its parts.

    `modules`: of the component, each with its share of the rows: 1, but where a file has one matrix
    for q, k and v.
    `arrange`: makes the update of each module from the file's, where these are not the same thing.
    `alpha`: when it is not among the tensors.
    """

    name: str  # as the file has it, for messages
    component: str
    modules: Mapping[str, int]
    parts: Mapping[str, str]  # part -> key
    alpha: float | None = None
    base_norm: bool = False
    arrange: Callable[[LoraWeights], list[LoraWeights | None]] | None = None

    @property
    def kind(self) -> str:
        """lora, loha, lokr or full; Damaged, naming the parts, when it is none of them."""
        parts = self.parts.keys()
        for kind, allowed in ALLOWED.items():
            if parts <= allowed and NEEDED[kind] <= parts and parts & (allowed - {"alpha"}):
                return kind
        raise Damaged(
            f"{self.name} is no LoRA that can be read here",
            why=f"it has {', '.join(sorted(parts))}",
        )

    @property
    def is_dora(self) -> bool:
        return bool(self.parts.keys() & {"dora_scale", "magnitude"})

    def rank(self, shapes: Mapping[str, Shape]) -> int | None:
        """What alpha is divided by; None where nothing is factored (a matrix as it is)."""
        inner = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
        found = (shapes[self.parts[part]] for part in inner if part in self.parts)
        return next((shape[0] for shape in found if shape), None)

    def weights(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shape of each module's weight, as Update.shape; Damaged where the parts cannot fit.

        `shapes`: of the tensors, by key.
        """
        parts = {part: shapes[key] for part, key in self.parts.items()}
        try:
            rows, *rest = _SHAPES[self.kind](parts)
        except (IndexError, KeyError, ValueError):
            raise _unfit(self, parts) from None
        total = sum(self.modules.values())
        return {m: (rows * share // total, *rest) for m, share in self.modules.items()}


def group(names: Iterable[tuple[Module, str, str]]) -> dict[Module, dict[str, str]]:
    """{module: {part: key}} of (module, part, key), whatever a layout takes for a module."""
    found: dict[Module, dict[str, str]] = defaultdict(dict)
    for module, part, key in names:
        if part in found[module]:
            raise Damaged(f"{key!r} says again what {found[module][part]!r} says")
        found[module][part] = key
    return dict(found)


def adapter_of(entries: Iterable[Entry], load: Callable[[str], Tensor]) -> Adapter:
    """The adapter that the entries describe; `load` gives the tensor of a key."""
    adapter: Adapter = defaultdict(dict)
    for entry in entries:
        update = build(entry, load)
        updates = entry.arrange(update.factors()) if entry.arrange else [update]
        for module, piece in zip(entry.modules, updates, strict=True):
            if piece is None:
                continue
            if module in adapter[entry.component]:
                raise Damaged(f"{entry.name} is a second LoRA for {module}")
            adapter[entry.component][module] = piece
    return dict(adapter)


def build(entry: Entry, load: Callable[[str], Tensor]) -> Update:
    """The update of one entry. Damaged when its tensors do not fit together."""
    kind = entry.kind
    tensors = {part: load(key) for part, key in entry.parts.items()}
    alpha = _alpha(entry, tensors)
    try:
        update = _BUILDERS[kind](entry, tensors, alpha)
        if kind != "lora":  # which is checked by itself
            outlines = {part: tensor.to("meta") for part, tensor in tensors.items()}
            _BUILDERS[kind](entry, outlines, alpha).change()
        check_magnitude(entry.name, update.magnitude, update.shape)
    except (RuntimeError, ValueError, IndexError, KeyError, ZeroDivisionError):
        raise _unfit(entry, {part: tuple(t.shape) for part, t in tensors.items()}) from None
    return update


def _unfit(entry: Entry, parts: Mapping[str, Shape]) -> Damaged:
    shown = ", ".join(f"{part} {shape}" for part, shape in sorted(parts.items()))
    return Damaged(f"{entry.name} is no {entry.kind}", why=f"its parts do not fit: {shown}")


def _alpha(entry: Entry, tensors: Mapping[str, Tensor]) -> float | None:
    """What the file says; None where it says nothing, which means scale 1 to every reader."""
    alpha = entry.alpha
    if "alpha" in tensors:
        alpha = float(tensors["alpha"]) if tensors["alpha"].numel() == 1 else math.nan
    if alpha is not None and (not math.isfinite(alpha) or alpha == 0):
        raise Damaged(f"{entry.name} has the alpha {alpha}")
    return alpha


def _lora(entry: Entry, tensors: Mapping[str, Tensor], alpha: float | None) -> Update:
    from dreamtune.formats.lycoris import untucked

    down, up = tensors["lora_down.weight"], tensors["lora_up.weight"]
    if "lora_mid.weight" in tensors:
        down = untucked(down, tensors["lora_mid.weight"])
    if {down.dim(), up.dim()} == {2, 4}:  # some writers flatten one of them
        down, up = (t.reshape(*t.shape, 1, 1) if t.dim() == 2 else t for t in (down, up))
    magnitude = tensors.get("dora_scale")
    if "magnitude" in tensors:  # PEFT's, of each output, in shapes of its own
        magnitude = tensors["magnitude"].reshape(up.shape[0], *[1] * (up.dim() - 1))
    rank = down.shape[0] if down.dim() else 0  # a scalar has none, and is refused
    scale = rank if alpha is None else alpha
    return checked(entry.name, LoraWeights(down, up, scale, magnitude, entry.base_norm))


def _loha(entry: Entry, tensors: Mapping[str, Tensor], alpha: float | None) -> Update:
    from dreamtune.formats.lycoris import Loha

    a1, b1, a2, b2 = (tensors[f"hada_{w}"] for w in ("w1_a", "w1_b", "w2_a", "w2_b"))
    cores = None
    if entry.parts.keys() & {"hada_t1", "hada_t2"}:
        cores = tensors["hada_t1"], tensors["hada_t2"]
    scale = b1.shape[0] if alpha is None else alpha
    return Loha((a1, b1), (a2, b2), scale, cores, tensors.get("dora_scale"))


def _lokr(entry: Entry, tensors: Mapping[str, Tensor], alpha: float | None) -> Update:
    from dreamtune.formats.lycoris import Lokr

    def side(w: str) -> Tensor | tuple[Tensor, Tensor]:
        whole = tensors.get(f"lokr_{w}")
        return (tensors[f"lokr_{w}_a"], tensors[f"lokr_{w}_b"]) if whole is None else whole

    w1, w2 = side("w1"), side("w2")
    factored = [w for w in (w2, w1) if isinstance(w, tuple)]
    scale = 1.0
    if factored:
        scale = factored[0][1].shape[0] if alpha is None else alpha
    return Lokr(w1, w2, scale, tensors.get("lokr_t2"), tensors.get("dora_scale"))


def _full(entry: Entry, tensors: Mapping[str, Tensor], alpha: float | None) -> Update:
    from dreamtune.formats.lycoris import Full

    if tensors["diff"].dim() not in (2, 4):  # of a norm or bias, which are not changed here
        raise ValueError
    return Full(tensors["diff"])


_BUILDERS: dict[str, Callable[[Entry, Mapping[str, Tensor], float | None], Update]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
}


# The shape of the weight that the parts of each kind change.


def _lora_shape(s: Mapping[str, Shape]) -> Shape:
    down, up = s["lora_down.weight"], s["lora_up.weight"]
    kernel = s.get("lora_mid.weight", down)[2:]
    if not kernel and len(up) == 4:
        kernel = (1, 1)
    return (up[0], down[1], *kernel)


def _loha_shape(s: Mapping[str, Shape]) -> Shape:
    core = s.get("hada_t1", ())
    return (s["hada_w1_a"][1 if core else 0], s["hada_w1_b"][1], *core[2:])


def _lokr_shape(s: Mapping[str, Shape]) -> Shape:
    def side(w: str, core: Shape) -> Shape:
        if f"lokr_{w}" in s:
            return s[f"lokr_{w}"]
        return (s[f"lokr_{w}_a"][1 if core else 0], s[f"lokr_{w}_b"][1], *core[2:])

    (a, b), (c, d, *kernel) = side("w1", ()), side("w2", s.get("lokr_t2", ()))
    return (a * c, b * d, *kernel)


_SHAPES: dict[str, Callable[[Mapping[str, Shape]], Shape]] = {
    "lora": _lora_shape,
    "loha": _loha_shape,
    "lokr": _lokr_shape,
    "full": lambda s: s["diff"],
}
