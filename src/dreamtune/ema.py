"""Averaged weights: what is exported may be smoother than what is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

DECAY = 0.999
LONG = 2000  # updates from which on an average is kept unless told otherwise


def decay_at(step: int, decay: float) -> float:
    """The decay after `step` updates: it rises to `decay`, so that the start is soon forgotten.

    The average then covers about the last tenth of the run, at most 1 / (1 - decay) updates.
    """
    return min(decay, (1 + step) / (10 + step))


class Average:
    """The exponential moving average of parameters, by name, in fp32 or whatever they are in.

    device: where it is kept, such as "cpu", which costs a copy each update; None: where they are.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], decay: float, device: str | None = None
    ) -> None:
        self._parameters, self._decay = parameters, decay
        self.values = {
            n: p.detach().to(device or p.device, copy=True) for n, p in parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after `step` updates."""
        averages = [*self.values.values()]
        pairs = zip(averages, self._parameters.values(), strict=True)
        current = [p.to(a.device, non_blocking=True) for a, p in pairs]
        torch._foreach_lerp_(averages, current, 1 - decay_at(step, self._decay))


@contextlib.contextmanager
def exported(
    parameters: Mapping[str, nn.Parameter], average: Average | None, optimizer: Any = None
) -> Iterator[None]:
    """Inside, parameters hold what is exported; afterwards their own bits again.

    average: what is put in, if there is one. optimizer: one whose `eval()` puts its average in.
    """
    if average is None and optimizer is None:
        yield
        return
    own = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
    if optimizer:
        optimizer.eval()
    if average:
        _copy(average.values, parameters)
    try:
        yield
    finally:
        if optimizer:
            optimizer.train()
        _copy(own, parameters)


@torch.no_grad()
def _copy(values: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, p in parameters.items():
        p.copy_(values[name])
