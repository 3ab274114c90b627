"""What a run leaves: files that other tools load, and what sampling must know of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import checkpoints, fsops, recipe
from dreamtune.bases.overrides import Overridden
from dreamtune.methods import Facts

if TYPE_CHECKING:
    from dreamtune.stages.learner import Learner
    from dreamtune.stages.train import Run


def weights(learner: Learner, folder: Path, step: int, training: Mapping[str, Any]) -> None:
    """What other tools load. NonFinite, and nothing written, when a weight is.

    training: facts of it, as kohya's ss_ keys name them
    """
    facts = Facts(size=(learner.resolution, learner.resolution), training=dict(training))
    with learner.exported():
        checkpoints.require_finite(learner.parameters, step)
        files = learner.method.export(learner.family, learner.concepts, facts)
        for name, content in files.items():
            fsops.make_folder((folder / name).parent)
            if isinstance(content, tuple):
                fsops.write_safetensors(folder / name, *content)
            else:
                fsops.write_json(folder / name, content)


def describe(ask: Run, learner: Learner, folder: Path) -> None:
    """adapter.json, what sampling must know, and the recipe that makes the run again."""
    known = ("identifier", "class_word", "bindings")
    facts = {
        "schema": 1,
        "method": ask.method.name,
        "options": dataclasses.asdict(ask.method.options),
        "family": learner.family.name,
        "base": ask.base.name,
        "base_hash": ask.recipe["base_hash"],
        "overrides": ask.base.record() if isinstance(ask.base, Overridden) else {},
        "concepts": [{k: getattr(c, k) for k in known} for c in learner.concepts],
        "resolution": learner.resolution,
        "steps": ask.train.steps,
    }
    fsops.write_json(folder / "adapter.json", facts)
    tables = {k: ask.recipe[k] for k in ("train", "method")}
    fsops.write_text(folder / "recipe.toml", recipe.dumps(tables))
