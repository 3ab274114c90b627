"""Crops and colours: geometry that never leaves the photo and keeps the subject."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamtune.data import crops


@pytest.mark.parametrize(
    ("resolution", "step"), [(512, 64), (1024, 64), (64, 8), (128, 8), (768, 64)]
)
def test_buckets(resolution: int, step: int) -> None:
    sizes = crops.buckets(resolution, step)
    assert sizes == sorted(set(sizes), key=lambda size: (size[0] / size[1], size))
    for width, height in sizes:
        assert (height, width) in sizes
        assert width % step == height % step == 0
        assert max(width, height) <= 2 * min(width, height)
        assert width * height == pytest.approx(resolution**2, rel=0.5)
    assert any(width == height for width, height in sizes)


def test_the_nearest_bucket_has_the_nearest_aspect() -> None:
    sizes = crops.buckets(512)
    assert crops.nearest_bucket((4000, 4000), sizes) == (512, 512)
    width, height = crops.nearest_bucket((4000, 3000), sizes)
    assert width / height == pytest.approx(4 / 3, rel=0.12)
    assert crops.nearest_bucket((3000, 4000), sizes) == (height, width)


sides = st.integers(64, 4000)
shares = st.floats(0, 1)


@given(
    size=st.tuples(sides, sides),
    target=st.sampled_from(crops.buckets(512)),
    corners=st.tuples(shares, shares, shares, shares),
    seed=st.integers(0, 2**32),
)
def test_a_crop_stays_inside_and_holds_what_fits(
    size: tuple[int, int], target: tuple[int, int], corners: tuple[float, ...], seed: int
) -> None:
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    for rng in (None, np.random.default_rng(seed)):
        box = crops.crop_box(size, (x0, y0, x1, y1), target, rng)
        left, top, right, bottom = box
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        for start, end, low, high, length in (
            (left, right, x0, x1, size[0]),
            (top, bottom, y0, y1, size[1]),
        ):
            if (high - low) * length <= end - start:
                assert start - 1 <= low * length and high * length <= end + 1
            else:
                assert low * length - 1 <= start and end <= high * length + 1


@given(st.integers(0, 2**32))
def test_a_random_crop_covers_the_asked_share(seed: int) -> None:
    box = crops.crop_box((1000, 1000), (0, 0, 1, 1), (512, 512), np.random.default_rng(seed))
    share = (box[2] - box[0]) * (box[3] - box[1]) / 1e6
    assert 0.695 <= share <= 1.0


def test_the_same_draws_give_the_same_crop() -> None:
    boxes = {
        crops.crop_box((640, 480), (0.2, 0.2, 0.6, 0.6), (512, 512), np.random.default_rng(5))
        for _ in range(3)
    }
    assert len(boxes) == 1


def test_jitter() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    assert (crops.jitter(pixels, np.random.default_rng(1), 0.0) == pixels).all()
    changed = crops.jitter(pixels, np.random.default_rng(1))
    assert changed.dtype == np.uint8
    assert 2 < np.abs(changed.astype(int) - pixels).mean() < 60
    assert (changed == crops.jitter(pixels, np.random.default_rng(1))).all()
