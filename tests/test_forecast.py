"""What a run is said to take, and runs that cannot fit."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dreamtune import families, losses
from dreamtune.artifacts import Artifact
from dreamtune.errors import Resources
from dreamtune.methods import Concept
from dreamtune.methods.lora import Method, Options
from dreamtune.objective import Objective
from dreamtune.settings import Train
from dreamtune.stages import forecast
from tests import forked
from tests.test_parity import fixed_batch


@pytest.fixture
def rehearsal() -> forecast.Rehearsal:
    family = families.load("tiny:sd", torch.float32)
    method = Method(Options(rank=4))
    method.attach(family, [Concept("[V01]", "dog", "rex")], 0)
    batch = {**fixed_batch(family), "weight": torch.ones(2)}
    trained = sum(p.numel() for group in method.groups() for p in group.parameters.values())
    objective = Objective(family, method.live(), losses.l2)
    return forecast.Rehearsal(objective, batch, contextlib.nullcontext, trained)


def test_a_rehearsal_leaves_nothing_behind(rehearsal: forecast.Rehearsal) -> None:
    before = {n: p.detach().clone() for n, p in rehearsal.objective.named_parameters()}
    rehearsal.row()
    assert rehearsal.seconds() > 0
    for name, p in rehearsal.objective.named_parameters():
        assert p.grad is None and torch.equal(p, before[name]), name


def test_memory_is_what_autograd_keeps(rehearsal: forecast.Rehearsal) -> None:
    """Against bytes counted by hand, for a module whose needs are known."""

    class Squares(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(256, 256))

        def forward(self, batch: dict) -> torch.Tensor:
            hidden = batch["mean"].flatten(1) @ self.weight  # keeps its input, 1 x 256
            return hidden.square().mean(1)  # keeps its input too

    batch = {"mean": torch.randn(3, 4, 8, 8), "weight": torch.ones(3)}
    known = forecast.Rehearsal(Squares(), batch, contextlib.nullcontext, 256 * 256)
    (row, _), state = known.row(), known.state
    assert state == 12 * 256 * 256
    # The view of the first row keeps the storage of all three; then hidden, the error, its weight.
    least = 4 * (3 * 256 + 256)
    assert least <= row / forecast.SLACK <= least + 64


def test_a_run_that_cannot_fit_is_told_the_way_out(
    rehearsal: forecast.Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row, _), state = rehearsal.row(), rehearsal.state
    monkeypatch.setattr(forecast, "available_memory", lambda device: state + row * 3 // 2)
    with pytest.raises(Resources) as refused:
        forecast.forecast(rehearsal, Train(batch=2, accumulation=3), "lora", tmp_path)
    assert "--batch 1 --accumulation 6" in str(refused.value)
    assert forecast.ways_out(Train(batch=8), "dreambooth", 800, 100, 50) == [
        "--batch 4 --accumulation 2",
        "--batch 1 --accumulation 8",
        "half the --resolution",
        "--method lora",
    ]


def test_a_full_disk_is_noticed_before_step_one(
    rehearsal: forecast.Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(Resources, match="of disk"):
        forecast.forecast(rehearsal, Train(), "lora", tmp_path)


def test_the_forecast_is_said(make_prep: Callable[..., Artifact], tmp_path: Path) -> None:
    make_prep()
    tiny = ["train", "--base", "tiny:sd", "--steps", "2", "--batch", "2", "--device", "cpu"]
    assert forked.run(tiny, tmp_path) == 0
    assert "2 updates will take " in (tmp_path / "stderr").read_text()
