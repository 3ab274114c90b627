"""The average of weights: its values, and that it comes and goes without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel

from dreamtune import checkpoints, ema
from dreamtune.errors import Usage
from dreamtune.settings import Train


def parameters() -> dict[str, torch.nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    return {n: torch.nn.Parameter(torch.randn(4, 3, generator=source)) for n in ("up", "down")}


def walk(weights: dict[str, torch.nn.Parameter], step: int) -> None:
    source = torch.Generator().manual_seed(step)
    for p in weights.values():
        p.data += torch.randn(p.shape, generator=source)


def test_it_is_the_average_of_diffusers() -> None:
    weights = parameters()
    ours, theirs = ema.Average(weights, 0.95), EMAModel(weights.values(), decay=0.95)
    theirs.optimization_step = 1  # its first step would do nothing
    for step in range(1, 300):
        walk(weights, step)
        ours.update(step)
        theirs.step(weights.values())
    for mine, other in zip(ours.values.values(), theirs.shadow_params, strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_what_is_exported_and_not_a_bit_is_left_of_it() -> None:
    weights = parameters()
    average = ema.Average(weights, 0.9)
    walk(weights, 1)
    before = {n: p.detach().clone() for n, p in weights.items()}
    with ema.exported(weights, average):
        assert all(torch.equal(p, average.values[n]) for n, p in weights.items())
    assert all(torch.equal(p, before[n]) for n, p in weights.items())


def test_an_optimizer_that_averages_leaves_no_trace_either() -> None:
    library = pytest.importorskip("pytorch_optimizer")
    weights = parameters()
    optimizer = library.ScheduleFreeAdamW(weights.values(), lr=0.1)
    for step in range(5):
        for p in weights.values():
            p.grad = p.detach() - step
        optimizer.step()
    before = {n: p.detach().clone() for n, p in weights.items()}
    with ema.exported(weights, None, optimizer):
        assert not any(torch.equal(p, before[n]) for n, p in weights.items())
    assert all(torch.equal(p, before[n]) for n, p in weights.items())
    optimizer.step()  # refuses to, unless it is in training mode again


def test_a_checkpoint_holds_it_and_the_scale_of_losses(tmp_path: Path) -> None:
    weights, others = parameters(), parameters()
    average, fresh = ema.Average(weights, 0.9), ema.Average(others, 0.9)
    walk(weights, 1)
    average.update(1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    optimizer = torch.optim.AdamW(weights.values(), fused=True)
    checkpoints.save(tmp_path, 1, weights, optimizer, average=average.values, scaler=scaler)
    path, again = tmp_path / "step-000001.safetensors", torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW(others.values(), fused=True)
    checkpoints.restore(path, others, optimizer, average=fresh.values, scaler=again)
    assert all(torch.equal(fresh.values[n], average.values[n]) for n in weights)
    assert again.state_dict() == scaler.state_dict()


def test_one_average_is_enough() -> None:
    with pytest.raises(Usage, match="both average"):
        Train(ema=0.99, optimizer="schedule-free")
