"""Settings that the photos decide: proposed, and said, unless somebody chose them.

The number of updates follows how often each photo is seen, which is what the guides of the field
agree on for a handful of photos (about a hundred times for a LoRA); with many photos, less often.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dreamtune import console, plugins, recipe
from dreamtune.settings import Train
from dreamtune.stages.sets import PhotoSet

FEWEST, MOST = 16, 80  # photos for which the number of updates is what it is for fewer, for more


def fill(train: Train, method: recipe.Chosen, sets: Sequence[PhotoSet]) -> Train:
    """`train` with the number of updates that these photos ask for, when nobody gave one."""
    if train.steps:
        return train
    photos = sum(len(one.samples()) for one in sets)
    views = plugins.load(recipe.METHODS, method.name).Method.views
    shown = views * min(MOST, max(FEWEST, photos))
    size = train.batch * train.accumulation
    steps = max(1, round(shown / size))
    console.say(f"{steps} updates: {photos} photos, each seen {shown / photos:.0f} times (--steps)")
    return dataclasses.replace(train, steps=steps)
