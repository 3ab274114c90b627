"""Proof that a file gives what was trained: it is read back by its layout's rule, and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dreamtune.errors import Damaged
from dreamtune.formats import adapters
from dreamtune.formats.ldm import Blocks
from dreamtune.formats.lora import Adapter, delta
from dreamtune.fsops import dump_safetensors

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-6  # of the largest change of a module, or of 1


def read_back(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], blocks: Blocks = Blocks()
) -> Adapter:
    """The adapter in the bytes that a file of these tensors has."""
    from safetensors.torch import load

    return adapters.parse(load(dump_safetensors(tensors, metadata)), metadata, blocks).adapter


def check(files: Mapping[str, Adapter], live: Iterable[tuple[str, str, Tensor, Tensor]]) -> None:
    """Damaged when a file does not give each module the change that it has in the live model.

    files: name -> what was read back
    live:  (component, module, base's weight, change) one by one: lora.live_deltas
    """
    left = {n: {(c, m) for c, found in a.items() for m in found} for n, a in files.items()}
    for component, module, weight, change in live:
        for name, adapter in files.items():
            left[name].discard((component, module))
            update = adapter.get(component, {}).get(module)
            # A fused matrix does not say which of its parts were trained and are still zero.
            given = delta(update, weight) if update else change.new_zeros(())
            error = float((given - change).abs().max())
            if not error <= TOLERANCE * max(1.0, float(change.abs().max())):
                raise _unlike(name, f"{component}.{module}", f"off by {error:g}")
    for name, modules in left.items():
        if modules:
            raise _unlike(name, ".".join(min(modules)), "it was not trained")


def _unlike(name: str, module: str, why: str) -> Damaged:
    return Damaged(
        f"{name} would not give what was trained",
        why=f"read back, the change of {module} is not the live one ({why})",
        fix="nothing was saved; the checkpoint is kept, and this is a bug to report",
    )
