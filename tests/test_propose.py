"""What the photos decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dreamtune.artifacts import Artifact
from dreamtune.recipe import Chosen
from dreamtune.settings import Train
from dreamtune.stages import propose, sets
from tests import forked


@pytest.mark.parametrize(
    ("method", "photos", "batch", "steps"),
    [
        ("lora", 5, 4, 400),
        ("lora", 20, 4, 500),
        ("embedding", 5, 4, 800),
        ("dreambooth", 5, 1, 800),
    ],
)
def test_updates_follow_the_photos(
    method: str, photos: int, batch: int, steps: int, make_prep: Callable[..., Artifact]
) -> None:
    chosen = Chosen(method, None)
    filled = propose.fill(Train(batch=batch), chosen, [sets.whole(make_prep(photos=photos))])
    assert filled.steps == steps
    assert propose.fill(Train(steps=7), chosen, []).steps == 7


@pytest.mark.parametrize(
    ("weights", "expected"), [(860_000_000, 1e-4), (2_600_000_000, 1e-4), (21_500_000, 6.3e-4)]
)
def test_small_denoisers_take_larger_steps(weights: int, expected: float) -> None:
    with torch.device("meta"):
        denoiser = torch.nn.Linear(weights // 1000, 1000, bias=False)
    assert propose.rate(1e-4, denoiser) == pytest.approx(expected, rel=0.01)


def test_the_proposal_is_said(make_prep: Callable[..., Artifact], tmp_path: Path) -> None:
    make_prep()
    assert forked.run(["train", "--base", "tiny:sd", "--dry-run"], tmp_path) == 0
    said = (tmp_path / "stderr").read_text()
    assert "400 updates: 3 photos, each seen 533 times (--steps)" in said
