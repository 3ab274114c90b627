"""The one training loop. It yields a Step after each update and leaves the rest to its caller."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreamtune.draws import seed_of

if TYPE_CHECKING:
    from dreamtune.objective import Batch


@dataclass(frozen=True)
class Step:
    """What one update did. The tensors stay on the device: reading them waits for it."""

    number: int  # updates done so far
    loss: Tensor  # scalar
    gradient_norm: Tensor  # scalar, before clipping
    learning_rate: float  # of the first group


def train(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], list[Batch]],
    *,
    accelerator: Any,
    rate: Callable[[int], float],
    steps: range,
    seed: int,
    clip: float,
) -> Iterator[Step]:
    """Update for each step number in `steps`.

    batches: step to the micro-batches of this process, whose "weight" entries (B,) already hold
        each sample's share of the global mean, so that losses and gradients just add up.
    rate: step to a factor of each group's "peak" learning rate; a group is frozen before its
        "start".
    clip: largest gradient norm.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step)
            for p in group["params"]:  # without gradients an optimizer holds no state for them
                p.requires_grad_(step >= group["start"])
        loss = torch.zeros((), device=accelerator.device)
        micro_batches = batches(step)
        for i, batch in enumerate(micro_batches):
            # Dropout draws from the global generator: a function of the step, as all else.
            torch.manual_seed(seed_of(seed, "dropout", step, i, accelerator.process_index))
            last = i == len(micro_batches) - 1
            wait = contextlib.nullcontext() if last else accelerator.no_sync(objective)
            with wait:
                with accelerator.autocast():
                    share = (objective(batch) * batch["weight"]).sum()
                accelerator.backward(share * accelerator.num_processes)  # DDP takes the mean
            loss += share.detach()
        norm = accelerator.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield Step(step + 1, accelerator.reduce(loss), norm, optimizer.param_groups[0]["lr"])
