"""Settings that the photos decide: proposed, and said, unless somebody chose them.

The number of updates follows how often each photo is seen, which is what the guides of the field
agree on for a handful of photos (about a hundred times for a LoRA); with many photos, less often.
The rate of a small denoiser is larger: Adam's best rate falls about with the width of a network
(Yang et al., arXiv:2203.03466), and so with the root of the number of its weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreamtune import bases, console, plugins, processes, recipe
from dreamtune.settings import Train
from dreamtune.stages.sets import PhotoSet

if TYPE_CHECKING:
    from torch import nn

FEWEST, MOST = 16, 80  # photos for which the number of updates is what it is for fewer, for more
USUAL = 860e6  # weights of Stable Diffusion 1's denoiser, which the usual rates are meant for
RANKS = ((100, 64), (20, 32), (0, 16))  # photos from which on a LoRA gets a rank
NARROW = 4  # a layer is at least so many times as wide as the rank
LARGEST = 10.0  # times the usual rate, for the smallest denoisers


def fill(
    train: Train, method: recipe.Chosen, sets: Sequence[PhotoSet]
) -> tuple[Train, recipe.Chosen]:
    """The settings with what nobody gave: the number of updates, and the rank of a LoRA."""
    photos = sum(len(one.samples()) for one in sets if not one.replay)
    if not train.steps:
        train = dataclasses.replace(train, steps=_steps(train, method, sets, photos))
    if getattr(method.options, "rank", 0) is None:
        ranked = dataclasses.replace(method.options, rank=_rank(photos, train.base))
        method = dataclasses.replace(method, options=ranked)
    return train, method


def _steps(train: Train, method: recipe.Chosen, sets: Sequence[PhotoSet], photos: int) -> int:
    """Updates, so that each photo is seen as often as is usual."""
    views = plugins.load(recipe.METHODS, method.name).Method.views
    shown = views * min(MOST, max(FEWEST, photos))
    size = train.batch * train.accumulation * processes.count()
    share = train.replay if any(one.replay for one in sets) else 0.0
    steps = max(1, round(shown / (1 - share) / size))
    console.say(f"{steps} updates: {photos} photos, each seen {shown / photos:.0f} times (--steps)")
    return steps


def _rank(photos: int, base: str) -> int:
    """What many photos say needs more room; a narrow base has no more."""
    usual = next(rank for least, rank in RANKS if photos >= least)
    width = _width(base)
    rank = min(usual, max(4, width // NARROW)) if width else usual
    why = f"{photos} photos" if rank == usual else f"layers of {base} are {width} wide"
    console.say(f"rank {rank}: {why} (--rank)")
    return rank


def _width(base: str) -> int | None:
    """Of the narrowest layers of a UNet on this disk; those that are fetched are wide enough."""
    if bases.remote(base):
        return None
    found = bases.find(base)
    if isinstance(found, bases.Tiny) or "unet" not in found.parts:
        return None
    return int(min(found.config("unet").get("block_out_channels", [0]))) or None


def rate(usual: float, denoiser: nn.Module) -> float:
    """The peak learning rate for a base, from what is usual for Stable Diffusion 1."""
    weights = sum(p.numel() for name, p in denoiser.named_parameters() if "lora_" not in name)
    return usual * min(LARGEST, max(1.0, (USUAL / weights) ** 0.5))
