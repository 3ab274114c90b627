"""LyCORIS' other ways to write a change of weights (https://arxiv.org/abs/2309.14859).

    LoHa    alpha / r * (a1 @ b1) * (a2 @ b2)                 the Hadamard product
    LoKr    alpha / r * kron(w1, w2), each w alone or a @ b   the Kronecker product
    full    diff

The factors of a convolution are flat, or three, with a core t (Tucker). All of them are also LoRAs,
since both products of matrices of low rank are of low rank:

    (a1 b1) * (a2 b2) = (a1 . a2)(b1 . b2)            ".": every column (row) of one times every
    kron(a1 b1, a2 b2) = kron(a1, a2) kron(b1, b2)    column (row) of the other
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dreamtune.formats.lora import LoraWeights, Shape

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple["Tensor", "Tensor"]  # a (out, r), b (r, in); with a core a is (r, out)


@dataclass(frozen=True, eq=False)
class Loha:
    """Two pairs of factors, with their cores (r, r, kh, kw) or none."""

    w1: Pair
    w2: Pair
    alpha: float
    cores: Pair | None = None
    magnitude: Tensor | None = None
    base_norm: ClassVar[bool] = False

    @property
    def rank(self) -> int:
        return self.w1[1].shape[0]

    @property
    def shape(self) -> Shape:
        return _shape(self.w1, self.cores[0] if self.cores else None)

    def change(self) -> Tensor:
        if self.cores:
            first, second = tucker(self.cores[0], *self.w1), tucker(self.cores[1], *self.w2)
        else:
            first, second = _product(self.w1), _product(self.w2)
        return self.alpha / self.rank * first * second

    def factors(self) -> LoraWeights:
        (a1, b1), (a2, b2) = self.w1, self.w2
        rank = b1.shape[0] * b2.shape[0]
        if self.cores or rank >= min(self.shape):
            return dense(self.change(), self.magnitude)
        up = (a1.float()[:, :, None] * a2.float()[:, None, :]).flatten(1)  # (out, r1 * r2)
        down = (b1.float()[:, None, :] * b2.float()[None, :, :]).flatten(0, 1)  # (r1 * r2, in)
        return LoraWeights(down, up, rank * self.alpha / self.rank, self.magnitude)


@dataclass(frozen=True, eq=False)
class Lokr:
    """w1 (a, b) and w2 (c, d) or (c, d, kh, kw), each whole or as factors, w2's with a core."""

    w1: Tensor | Pair
    w2: Tensor | Pair
    alpha: float  # 1 where neither has factors: readers ignore it then
    core: Tensor | None = None
    magnitude: Tensor | None = None
    base_norm: ClassVar[bool] = False

    @property
    def rank(self) -> int:
        """The inner size of w2's factors, else of w1's: what alpha is divided by."""
        return next((w[1].shape[0] for w in (self.w2, self.w1) if isinstance(w, tuple)), 1)

    @property
    def shape(self) -> Shape:
        (a, b), (c, d, *kernel) = _shape(self.w1, None), _shape(self.w2, self.core)
        return (a * c, b * d, *kernel)

    def _whole(self) -> Pair:
        """w1 and w2 multiplied out."""
        w1 = _product(self.w1) if isinstance(self.w1, tuple) else self.w1.float()
        if self.core is not None and isinstance(self.w2, tuple):
            return w1, tucker(self.core, *self.w2)
        return w1, _product(self.w2) if isinstance(self.w2, tuple) else self.w2.float()

    def change(self) -> Tensor:
        import torch

        w1, w2 = self._whole()
        w1 = w1.reshape(*w1.shape, *[1] * (w2.dim() - 2))
        return self.alpha / self.rank * torch.kron(w1, w2)

    def factors(self) -> LoraWeights:
        import torch

        w2 = self.w2 if self.core is None else self._whole()[1]
        (a1, b1), (a2, b2) = _split(self.w1), _split(w2)
        rank = b1.shape[0] * b2.shape[0]
        if rank >= min(self.shape[:2]):
            return dense(self.change(), self.magnitude)
        up, down = torch.kron(a1, a2), torch.kron(b1, b2)
        ones = [1] * (len(self.shape) - 2)
        down, up = down.reshape(rank, *self.shape[1:]), up.reshape(*up.shape, *ones)
        return LoraWeights(down, up, rank * self.alpha / self.rank, self.magnitude)


@dataclass(frozen=True, eq=False)
class Full:
    """The change itself."""

    diff: Tensor
    magnitude: ClassVar[None] = None
    base_norm: ClassVar[bool] = False
    alpha: ClassVar[float] = 1.0

    @property
    def rank(self) -> int:
        return min(self.diff.shape[0], self.diff[0].numel())

    @property
    def shape(self) -> Shape:
        return tuple(self.diff.shape)

    def change(self) -> Tensor:
        return self.diff.float()

    def factors(self) -> LoraWeights:
        return dense(self.change())


def _shape(whole: Tensor | Pair, core: Tensor | None) -> Shape:
    """Of a matrix, or of what its factors make."""
    if not isinstance(whole, tuple):
        return tuple(whole.shape)
    (a, b), kernel = whole, () if core is None else tuple(core.shape[2:])
    return (a.shape[0 if core is None else 1], b.shape[1], *kernel)


def dense(change: Tensor, magnitude: Tensor | None = None) -> LoraWeights:
    """Any change as a LoRA of full rank: one of its factors is the identity."""
    import torch

    out, flat = change.shape[0], change.flatten(1)
    rank, ones = min(flat.shape), [1] * (change.dim() - 2)
    identity = torch.eye(rank)
    up, down = (identity, flat) if out == rank else (flat, identity)
    return LoraWeights(
        down.reshape(rank, *change.shape[1:]), up.reshape(out, rank, *ones), rank, magnitude
    )


def tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(out, in, kh, kw) of a core (r, r, kh, kw), a (r, out) and b (r, in)."""
    import torch

    return torch.einsum("ijkl,ip,jq->pqkl", core.float(), a.float(), b.float()).contiguous()


def untucked(down: Tensor, core: Tensor) -> Tensor:
    """The down matrix (r, in, kh, kw) that a core (r, s, kh, kw) and one (s, in, 1, 1) make."""
    import torch

    return torch.einsum("ijkl,jq->iqkl", core.float(), down.float().flatten(1))


def _product(pair: Pair) -> Tensor:
    return pair[0].float() @ pair[1].float()


def _split(whole: Tensor | Pair) -> Pair:
    """Two factors of a matrix: those it has, or itself and the identity."""
    import torch

    if isinstance(whole, tuple):
        return whole[0].float(), whole[1].float()
    flat = whole.float().flatten(1)
    rank = min(flat.shape)
    identity = torch.eye(rank)
    return (identity, flat) if flat.shape[0] == rank else (flat, identity)
