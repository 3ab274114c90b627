"""Courses of the learning rate beside those of diffusers, and at their ends."""

from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_scheduler

from dreamtune import schedules, settings

STEPS, WARMUP, CYCLES = 40, 8, 3
NAMES = settings.Train.__dataclass_fields__["schedule"].metadata["choices"]
THEIRS = {"restarts": "cosine_with_restarts", "constant": "constant_with_warmup"}


@pytest.mark.parametrize("name", NAMES)
def test_after_the_warm_up_it_is_diffusers(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    kind = THEIRS.get(name, name)
    cycles = CYCLES if name == "restarts" else 0.5
    scheduler = get_scheduler(kind, optimizer, None, WARMUP, STEPS, cycles)
    for step in range(STEPS):
        ours = schedules.factor(name, step, STEPS, WARMUP, CYCLES)
        if step >= WARMUP:
            assert ours == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9), step
        else:  # theirs wastes the first update on a rate of 0
            assert ours == (step + 1) / WARMUP
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_at_the_peak_and_never_leaves_the_range(name: str) -> None:
    for steps in (1, 2, 7):
        factors = [schedules.factor(name, step, steps, cycles=CYCLES) for step in range(steps)]
        assert factors[0] == 1.0 and all(0 < f <= 1 for f in factors)


def test_a_warm_up_longer_than_the_run() -> None:
    assert [schedules.factor("cosine", step, 3, 10) for step in range(3)] == [0.1, 0.2, 0.3]
