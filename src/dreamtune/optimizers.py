"""Optimizers by name: a function of this module takes parameter groups and gives an optimizer.

groups: dicts with "params", "lr" and "weight_decay", as torch.optim reads them. Those that are not
torch's or transformers' come with an extra, as `pip install 'dreamtune[optimizers]'`.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Usage

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

Groups = list[dict[str, Any]]
FINDS_ITS_RATE = {"prodigy"}  # the learning rate is a factor of what they find, 1 by default
AVERAGES = {"schedule-free"}  # train on one set of weights and export another
LION_SHARE = 0.2  # the paper's section 5 advises 3 to 10 times less than AdamW's rate


def make(name: str, groups: Groups) -> Optimizer:
    """The optimizer called `name`, such as "adamw8bit". Usage when its library is not installed."""
    return getattr(sys.modules[__name__], name.replace("-", "_"))(groups)


def peak(name: str, method: float, asked: float | None, group: float | None = None) -> float:
    """The peak learning rate of a group: its own, else what was asked for, else a default.

    method: the method's default, which is meant for AdamW.
    """
    if name in FINDS_ITS_RATE:  # one estimate for all, so no group can have its own
        return asked or 1.0
    if group is not None:
        return group
    return asked or method * (LION_SHARE if name == "lion" else 1.0)


def dump(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """All that an optimizer remembers: tensors as "OWNER.KEY", and numbers by owner and key.

    An owner is a parameter's name, or "group-0" for what a group of them shares.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for owner, memory in _memories(optimizer, parameters).items():
        tensors |= {f"{owner}.{k}": v for k, v in memory.items() if hasattr(v, "detach")}
        numbers[owner] = {k: v for k, v in memory.items() if _is_number(v)}
    return tensors, numbers


def restore(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Mapping[str, Any]],
) -> None:
    """Put back what `dump` gave, bit for bit, which `load_state_dict` does not promise."""
    memories = _memories(optimizer, parameters)
    for owner, values in numbers.items():
        memories[owner].update(values)
    for path, value in tensors.items():
        owner, _, key = path.rpartition(".")
        memories[owner][key] = value


def _memories(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Any]]:
    """The dicts in which an optimizer keeps things, by owner."""
    groups = {f"group-{i}": group for i, group in enumerate(optimizer.param_groups)}
    return {**{name: optimizer.state[p] for name, p in parameters.items()}, **groups}


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) and math.isfinite(value)


def adamw(groups: Groups) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101), in one kernel."""
    import torch

    return torch.optim.AdamW(groups, fused=True)


def adamw8bit(groups: Groups) -> Optimizer:
    """AdamW with its moments in 8 bits by blocks (Dettmers et al., arXiv:2110.02861)."""
    return _library("bitsandbytes", "adamw8bit", "8bit").optim.AdamW8bit(groups)


def adafactor(groups: Groups) -> Optimizer:
    """Second moments by rows and columns (Shazeer & Stern, arXiv:1804.04235), at our own rates.

    Updates relative to a weight's size, the paper's section 8, would leave weights that start at
    zero where they are, as LoRA's do.
    """
    from transformers.optimization import Adafactor

    return Adafactor(groups, scale_parameter=False, relative_step=False)


def lion(groups: Groups) -> Optimizer:
    """Sign of an interpolated momentum (Chen et al., arXiv:2302.06675): half of AdamW's state."""
    return _library("pytorch_optimizer", "lion").Lion(groups)


def prodigy(groups: Groups) -> Optimizer:
    """Finds the learning rate by itself (Mishchenko & Defazio, arXiv:2306.06101).

    With bias correction and safeguarded warm-up, as its authors advise for diffusion models.
    """
    kind = _library("pytorch_optimizer", "prodigy").Prodigy
    return kind(groups, bias_correction=True, safeguard_warmup=True)


def schedule_free(groups: Groups) -> Optimizer:
    """AdamW whose average replaces a schedule (Defazio et al., arXiv:2405.15682).

    Its `eval()` puts the average into the parameters, `train()` what is trained.
    """
    return _library("pytorch_optimizer", "schedule-free").ScheduleFreeAdamW(groups)


def _library(package: str, name: str, extra: str = "optimizers") -> Any:
    """An optional package, or Usage that says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise Usage(
            f"--optimizer {name} needs {package}",
            why=str(e),
            fix=f"pip install 'dreamtune[{extra}]', or use --optimizer adamw",
        ) from None
