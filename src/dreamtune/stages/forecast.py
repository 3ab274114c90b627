"""What a run will take, before step 1: one small step is tried, and what it needs is scaled up.

A run that cannot fit is refused with the cheapest ways out, instead of dying in its first minutes.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreamtune.errors import Resources
from dreamtune.settings import Train

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dreamtune.objective import Batch

GIB = 2**30
SLACK = 1.25  # for what kernels need beside the tensors that are kept
RESERVE = GIB // 4  # disk that is left to others
KEPT = 3  # checkpoints on the disk at once: two, and the one being written


@dataclass(frozen=True)
class Forecast:
    """What a run takes: seconds, and bytes of memory beside the base, and of disk."""

    seconds: float
    memory: int
    disk: int

    def __str__(self) -> str:
        time = f"about {self.seconds / 60:.0f} min" if self.seconds >= 90 else "a minute or less"
        return f"{time}, {_size(self.memory)} of memory beside the base, {_size(self.disk)} of disk"


@dataclass(frozen=True)
class Rehearsal:
    """Forward and backward before step 1. Nothing is changed by it: gradients are dropped, and no
    random number is used up.

    context: makes the autocast context of the loop; trained: numbers that are trained.
    """

    objective: nn.Module
    batch: Batch
    context: Callable[[], contextlib.AbstractContextManager[None]]
    trained: int

    @property
    def rows(self) -> int:
        return len(self.batch["weight"])

    @property
    def state(self) -> int:
        """Bytes of gradients and the optimizer's two moments, in fp32."""
        return 12 * self.trained

    def row(self) -> tuple[int, float]:
        """Bytes that a row needs, by what autograd keeps of one, and its seconds."""
        with _counting(self.objective) as kept:
            seconds = self._run(_first(self.batch))
        return round(SLACK * sum(kept.values())), seconds

    def seconds(self) -> float:
        """Of one micro-batch."""
        return self._run(self.batch)

    def _run(self, batch: Batch) -> float:
        started = time.monotonic()
        with self.context():
            share = (self.objective(batch) * batch["weight"]).sum()
        share.backward()
        share.item()  # waits for the device
        self.objective.zero_grad(set_to_none=True)
        return time.monotonic() - started


def forecast(rehearsal: Rehearsal, train: Train, method: str, folder: Path) -> Forecast:
    """What the run will take; Resources when it does not fit, with the three cheapest ways out.

    folder: on the disk that the run writes to.
    """
    device = rehearsal.batch["weight"].device
    (row, seconds), state = rehearsal.row(), rehearsal.state
    need, there = row * rehearsal.rows + state, available_memory(device)
    if need > there:
        ways = ways_out(train, method, row * rehearsal.rows, state, there)
        raise Resources(
            f"the run needs {need / GIB:.1f} GiB of memory",
            why=f"{there / GIB:.1f} GiB are free",
            fix=", or ".join(ways[:3]),
        )
    exports = 1 + (train.steps // train.save_every if train.save_every else 0)
    disk, free = KEPT * state + exports * 8 * rehearsal.trained, shutil.disk_usage(folder).free
    if disk + RESERVE > free:
        raise Resources(
            f"the run needs {_size(disk)} of disk, and leaves {_size(RESERVE)} to others",
            why=f"{_size(free)} are free",
            fix="make room" + (", or raise --save-every" if train.save_every else ""),
        )
    if rehearsal.rows > 1:
        seconds = rehearsal.seconds()
    return Forecast(train.steps * train.accumulation * seconds, need, disk)


def ways_out(train: Train, method: str, rows: int, state: int, there: int) -> Sequence[str]:
    """Flags that lower the need, the cheapest in time and quality first: those that suffice, or
    all when none does.

    rows: bytes that a micro-batch needs; state: bytes of gradients and moments; there: free bytes.
    """
    ways = []
    for batch in sorted({train.batch // 2, 1} - {0, train.batch}, reverse=True):
        more = train.accumulation * train.batch // batch
        ways.append((state + rows * batch // train.batch, f"--batch {batch} --accumulation {more}"))
    ways.append((state + rows // 4, "half the --resolution"))
    if method == "dreambooth":
        ways.append((rows, "--method lora"))
    fitting = [flag for need, flag in ways if need <= there]
    return fitting or [flag for _, flag in ways]


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    import psutil
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    return int(psutil.virtual_memory().available)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def _first(batch: Batch) -> Batch:
    """The first row of a batch."""
    import torch

    one: Batch = {}
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            one[name] = value[:1]
        elif isinstance(value, dict):
            one[name] = {k: v[:1] for k, v in value.items()}
    return one


@contextlib.contextmanager
def _counting(objective: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes by storage of the activations that autograd keeps."""
    import torch

    weights = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
