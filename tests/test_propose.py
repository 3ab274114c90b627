"""What the photos decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dreamtune.artifacts import Artifact
from dreamtune.methods import lora
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
    filled, _ = propose.fill(Train(batch=batch), chosen, [sets.whole(make_prep(photos=photos))])
    assert filled.steps == steps
    assert propose.fill(Train(steps=7), chosen, [])[0].steps == 7


@pytest.mark.parametrize(
    ("base", "photos", "rank", "why"),
    [
        ("tiny:sd", 5, 16, "rank 16: 5 photos (--rank)"),
        ("tiny:sd", 24, 32, "rank 32: 24 photos (--rank)"),
        ("sdxl", 120, 64, "rank 64: 120 photos (--rank)"),  # which is not fetched for that
        ("mini", 120, 32, "rank 32: layers of mini are 128 wide (--rank)"),
    ],
)
def test_the_rank_follows_photos_and_base(
    base: str,
    photos: int,
    rank: int,
    why: str,
    make_prep: Callable[..., Artifact],
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepared = [sets.whole(make_prep(photos=photos))]
    train = Train(base=base, steps=1)
    _, chosen = propose.fill(train, Chosen("lora", lora.Options()), prepared)
    assert chosen.options.rank == rank
    assert why in capsys.readouterr().err
    asked = Chosen("lora", lora.Options(rank=8))
    assert propose.fill(train, asked, prepared)[1] == asked


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
