"""How the built-in base is made: what its captions may say, and what its autoencoder promises."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from dreamtune import bases
from tests.test_documents import ROOT
from tools.mini import train_vae
from tools.mini.artwork import Concept
from tools.mini.compare import Plan, Results
from tools.mini.compose import random_picture
from tools.mini.pool import caption_ids
from tools.mini.progress import Progress

MINI = ROOT / "src/dreamtune/assets/mini"


def test_what_is_not_named_is_called_by_its_category() -> None:
    """A base must not know the names of what only gives a class word its breadth."""
    fox = Concept("1f98a", ("fox",), "animal", held_out=False)
    owl = Concept("1f989", ("owl",), "bird", held_out=False)
    rng = random.Random(0)
    pictures = [random_picture(("3d",), [c.code], 0.0, rng) for c in (fox, owl) for _ in range(50)]
    tokens = CLIPTokenizer.from_pretrained(MINI / "tokenizer")
    ids = caption_ids(pictures, {fox.code: fox, owl.code: owl}, {fox.code}, tokens, seed=0)
    texts = tokens.batch_decode(ids.flatten(0, 1).tolist(), skip_special_tokens=True)
    foxes, owls = texts[:100], texts[100:]
    assert sum("fox" in text for text in foxes) > 80
    assert not any("owl" in text for text in owls)
    assert all("bird" in text for text in owls)


def test_the_posterior_has_one_deviation() -> None:
    """The decoder has learned to bear just this much, on every channel of every picture."""
    base = bases.find("mini")
    assert not isinstance(base, bases.Tiny)
    vae = base.load("vae", AutoencoderKL, torch.float32)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        deviations = vae.encode(pictures).latent_dist.std
    torch.testing.assert_close(
        deviations, torch.full_like(deviations, train_vae.NOISE), rtol=1e-3, atol=0
    )


def test_the_rate_follows_the_minutes() -> None:
    assert Progress(step=0).rate(10) < 0.01
    warm = [Progress(step=1000, seconds=60 * minute).rate(10) for minute in range(13)]
    assert warm[0] == 1 and warm == sorted(warm, reverse=True)
    assert 0 < warm[10] == warm[12] < 0.03


def test_comparisons_side_by_side_train_equally_long(tmp_path: Path) -> None:
    """Two processes that measured different rates: both go by what stands in the file first."""
    plan = Plan("cpu64", "base", 40.0, 2, 4.0, 2)
    one, two = (Results(tmp_path / "compare.jsonl", plan) for _ in range(2))
    held = two.steps  # by the turn that is being measured
    one.settle({"lora": 256})
    two.settle({"lora": 380, "embedding": 90})
    assert held == two.steps == {"lora": 256, "embedding": 90}
    assert Results(tmp_path / "compare.jsonl", plan).steps == two.steps
