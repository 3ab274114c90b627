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

from dreamtune import console, plugins, processes, recipe
from dreamtune.settings import Train
from dreamtune.stages.sets import PhotoSet

if TYPE_CHECKING:
    from torch import nn

FEWEST, MOST = 16, 80  # photos for which the number of updates is what it is for fewer, for more
USUAL = 860e6  # weights of Stable Diffusion 1's denoiser, which the usual rates are meant for
LARGEST = 10.0  # times the usual rate, for the smallest denoisers


def fill(train: Train, method: recipe.Chosen, sets: Sequence[PhotoSet]) -> Train:
    """`train` with the number of updates that these photos ask for, when nobody gave one."""
    if train.steps:
        return train
    photos = sum(len(one.samples()) for one in sets)
    views = plugins.load(recipe.METHODS, method.name).Method.views
    shown = views * min(MOST, max(FEWEST, photos))
    size = train.batch * train.accumulation * processes.count()
    steps = max(1, round(shown / size))
    console.say(f"{steps} updates: {photos} photos, each seen {shown / photos:.0f} times (--steps)")
    return dataclasses.replace(train, steps=steps)


def rate(usual: float, denoiser: nn.Module) -> float:
    """The peak learning rate for a base, from what is usual for Stable Diffusion 1."""
    weights = sum(p.numel() for name, p in denoiser.named_parameters() if "lora_" not in name)
    return usual * min(LARGEST, max(1.0, (USUAL / weights) ** 0.5))
