"""Encodings are found again, and never stale or damaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dreamtune import fsops
from dreamtune.artifacts import Artifact
from dreamtune.data.cache import Cache, CropPlan, cut, encode_photo
from dreamtune.data.dataset import Sample, read
from dreamtune.errors import Damaged, NonFinite

PLAN = CropPlan(sizes=((64, 64),), variants=3, area=(0.7, 1.0), jitter=0.2, seed=0)
CPU = torch.device("cpu")


class Encoder:
    """Counts its calls; the posterior is the pixels' mean."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        return mean, torch.full_like(mean, 0.1)


@pytest.fixture
def sample(make_prep: Callable[..., Artifact]) -> Sample:
    return read(make_prep().path)[1]


def test_the_second_time_costs_nothing_and_is_equal(sample: Sample, tmp_path: Path) -> None:
    encode, cache = Encoder(), Cache(tmp_path / "cache")
    first = encode_photo(sample, PLAN, encode, "vae", cache, CPU)
    again = encode_photo(sample, PLAN, encode, "vae", cache, CPU)
    assert encode.calls == PLAN.variants
    assert first.keys() == again.keys() == {"mean", "std", "meta"}
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_photo_that_changed_is_neither_encoded_nor_mistaken(
    sample: Sample, tmp_path: Path
) -> None:
    encode, cache = Encoder(), Cache(tmp_path / "cache")
    encode_photo(sample, PLAN, encode, "vae", cache, CPU)
    with sample.path.open("ab") as file:
        file.write(b"more")
    other = dataclasses.replace(sample, sha256=fsops.hash_file(sample.path))
    encode_photo(other, PLAN, encode, "vae", cache, CPU)
    assert encode.calls == 2 * PLAN.variants
    sample.path.write_bytes(b"<html>")
    with pytest.raises(Damaged, match="has changed meanwhile"):
        encode_photo(other, dataclasses.replace(PLAN, seed=1), encode, "vae", cache, CPU)


def test_what_is_not_finite_is_not_kept(sample: Sample, tmp_path: Path) -> None:
    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pixels * torch.nan, pixels

    cache = Cache(tmp_path / "cache")
    with pytest.raises(NonFinite, match=r"no finite numbers \(mean\).*--vae"):
        encode_photo(sample, PLAN, encode, "vae", cache, CPU)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"plan": {"variants": 2}},
        {"plan": {"plain": True}},
        {"plan": {"seed": 1}},
        {"plan": {"jitter": 0.1}},
        {"plan": {"sizes": ((64, 48),)}},
        {"vae": "another"},
        {"sample": {"focus": (0.0, 0.0, 1.0, 1.0)}},
    ],
)
def test_whatever_changes_the_result_changes_the_key(
    change: dict, sample: Sample, tmp_path: Path
) -> None:
    encode, cache = Encoder(), Cache(tmp_path / "cache")
    encode_photo(sample, PLAN, encode, "vae", cache, CPU)
    before = encode.calls
    plan = dataclasses.replace(PLAN, **change.get("plan", {}))
    other = dataclasses.replace(sample, **change.get("sample", {}))
    encode_photo(other, plan, encode, change.get("vae", "vae"), cache, CPU)
    assert encode.calls > before


def test_another_device_or_library_is_another_entry(sample: Sample, tmp_path: Path) -> None:
    encode = Encoder()
    for arithmetic in ({"device": "cpu"}, {"device": "cuda"}, {"device": "cpu"}):
        encode_photo(sample, PLAN, encode, "vae", Cache(tmp_path / "cache", arithmetic), CPU)
    assert encode.calls == 2 * PLAN.variants


def test_a_flipped_byte_is_computed_again(sample: Sample, tmp_path: Path) -> None:
    encode, cache = Encoder(), Cache(tmp_path / "cache")
    good = encode_photo(sample, PLAN, encode, "vae", cache, CPU)
    (entry,) = (tmp_path / "cache").glob("*.safetensors")
    data = bytearray(entry.read_bytes())
    for place in (3, len(data) // 2, len(data) - 1):
        data[place] ^= 1
        entry.write_bytes(data)
        again = encode_photo(sample, PLAN, encode, "vae", cache, CPU)
        assert all(torch.equal(good[name], again[name]) for name in good)
    assert encode.calls == 4 * PLAN.variants


def test_crops_differ_and_say_where_they_are(sample: Sample) -> None:
    pixels, meta = cut(sample, PLAN)
    assert pixels.shape == (3, 3, 64, 64)
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert not torch.equal(pixels[0], pixels[1])
    width, height = sample.size
    for original_h, original_w, top, left, target_h, target_w in meta.tolist():
        assert (original_h, original_w, target_h, target_w) == (height, width, 64, 64)
        assert top >= 0 and left >= 0


def test_the_plain_middle(sample: Sample) -> None:
    plan = dataclasses.replace(PLAN, plain=True)
    first, second = (cut(sample, dataclasses.replace(plan, seed=s))[0] for s in (0, 1))
    assert torch.equal(first, second)
