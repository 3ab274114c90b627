"""batch(step) is a pure function, and fair."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamtune.data.batches import Chance, Order, Table, make_batch

buckets = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def order_of(counts: list[int], size: int, variants: int = 3, seed: int = 0) -> Order:
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return Order(
        [range(a, a + n) for a, n in zip(starts, counts, strict=True)], size, variants, seed
    )


@given(buckets, st.integers(1, 6), st.integers(0, 40))
def test_a_batch_is_full_and_from_one_bucket(counts: list[int], size: int, step: int) -> None:
    order = order_of(counts, size)
    picks = order.picks(step)
    assert len(picks) == size
    assert sum({p.sample for p in picks} <= set(bucket) for bucket in order.buckets) == 1
    assert [p.ordinal for p in picks] == [step * size + i for i in range(size)]
    assert picks == order_of(counts, size).picks(step)


@given(st.integers(1, 9), st.integers(1, 6))
def test_every_sample_and_variant_comes_equally_often(count: int, size: int) -> None:
    order = order_of([count], size)
    laps = 3 * size  # so that whole batches make whole laps, for all variants
    seen = Counter(
        (p.sample, p.variant) for s in range(laps * count // size) for p in order.picks(s)
    )
    assert set(seen.values()) == {size}


@given(buckets, st.integers(1, 4))
def test_samples_of_small_buckets_come_no_more_often(counts: list[int], size: int) -> None:
    order = order_of(counts, size)
    seen = Counter(p.sample for s in range(sum(counts)) for p in order.picks(s))
    assert seen == dict.fromkeys(range(sum(counts)), size)


@given(buckets, st.integers(1, 4), st.integers(1, 30))
def test_no_more_is_shown_of_a_bucket_than_is_said(counts: list[int], size: int, n: int) -> None:
    order = order_of(counts, size, variants=100)
    said = dict(enumerate(order.shown(n)))
    picks = [pick for step in range(n) for pick in order.picks(step)]
    for place, bucket in enumerate(order.buckets):
        variants = [p.variant for p in picks if p.sample in bucket]
        assert len(variants) <= said[place]
        assert max(variants, default=0) < -(-said[place] // len(bucket))


def table(samples: int, variants: int = 3) -> Table:
    images = [
        {n: torch.randn(variants, 4, 2, 2) for n in ("mean", "std")}
        | {"meta": torch.randn(variants, 6)}
        for _ in range(samples)
    ]
    text = [{"text": torch.randn(1, 5, 8)} for _ in range(samples)]
    return Table(images, text, "text", {"subject": range(samples)}, [1.0] * samples)


def test_slices_of_a_global_batch_are_the_global_batch() -> None:
    """Accumulation and world size change nothing about the samples and their draws."""
    order, rows = order_of([5], 6), table(5)
    picks = order.picks(4)
    whole = make_batch(rows, picks, seed=1, shares={"subject": 1 / 6})
    parts = [
        make_batch(rows, picks[i : i + 2], seed=1, shares={"subject": 1 / 6}) for i in (0, 2, 4)
    ]
    for name in ("mean", "std", "meta", "noise", "posterior_noise", "u", "weight"):
        assert torch.equal(whole[name], torch.cat([p[name] for p in parts])), name
    assert torch.equal(whole["text"]["text"], torch.cat([p["text"]["text"] for p in parts]))
    assert torch.isclose(whole["weight"].sum(), torch.tensor(1.0))


def test_the_seed_changes_order_and_noise() -> None:
    first, second = (order_of([9], 4, seed=s).picks(0) for s in (0, 1))
    assert [p.sample for p in first] != [p.sample for p in second]
    rows = table(9)
    noises = [make_batch(rows, first, seed, {"subject": 1.0})["noise"] for seed in (0, 1)]
    assert not torch.equal(*noises)


def test_captions_are_left_out_by_ordinal_whatever_the_batch() -> None:
    rows, order = table(4), order_of([4], 8)
    rows = dataclasses.replace(rows, texts=[*rows.texts, {"text": torch.full((1, 5, 8), -1.0)}])
    rows = dataclasses.replace(rows, empty=len(rows.texts) - 1)
    chance, plain = Chance(caption_dropout=0.3), Chance()
    picks = [pick for step in range(100) for pick in order.picks(step)]
    together = make_batch(rows, picks, 0, {"subject": 1.0}, chance)
    full = make_batch(rows, picks, 0, {"subject": 1.0}, plain)
    left_out = (together["text"]["text"] == -1).flatten(1).all(1)
    assert 0.25 < left_out.float().mean() < 0.35  # of 800
    assert torch.equal(together["text"]["text"][~left_out], full["text"]["text"][~left_out])
    assert all(torch.equal(together[n], full[n]) for n in ("noise", "u", "posterior_noise"))
    apart = [make_batch(rows, [pick], 0, {"subject": 1.0}, chance) for pick in picks[:40]]
    alone = torch.cat([batch["text"]["text"] for batch in apart])
    assert torch.equal(alone, together["text"]["text"][:40])


def test_a_noise_offset_is_even_over_each_channel() -> None:
    rows, order = table(4), order_of([4], 400)
    shares = {"subject": 1.0}
    plain = make_batch(rows, order.picks(0), 0, shares)["noise"]
    moved = make_batch(rows, order.picks(0), 0, shares, Chance(noise_offset=0.1))["noise"]
    offset = moved - plain
    assert torch.allclose(offset, offset[..., :1, :1].expand_as(offset), atol=1e-6)
    assert offset[..., 0, 0].std() == pytest.approx(0.1, rel=0.1)
