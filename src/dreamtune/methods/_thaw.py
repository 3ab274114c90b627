"""Progressive unfreezing: a model's last layers are trained first, the others later.

A plan is text: "3" trains the last three layers, "3:all@0.5" widens to the whole model at half of
the run, and "0:2@0.2:all@0.6" starts with nothing. Whole models from the start are no plan: None.

A layer is a block of a UNet or a transformer, or a layer of a text encoder. What comes after the
last block belongs to it; what comes before the first (embeddings of tokens and times) and LoRA on
it counts as the model's very first layer, and is trained when "all" of it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dreamtune.errors import Usage

if TYPE_CHECKING:
    from torch import nn

Stage = tuple[float, float]  # (layers, from this share of the run)

# Containers of blocks in the order in which data passes them, for each kind of model.
CONTAINERS = (
    "layers",  # CLIP
    "block",  # T5
    "transformer_blocks",
    "single_transformer_blocks",
    "down_blocks",
    "mid_block",
    "up_blocks",
)
BLOCK = re.compile(rf"(?:^|\.)({'|'.join(CONTAINERS)})(?:\.(\d+))?\.")
AFTER = re.compile(
    r"(^|\.)(final_layer_norm|text_projection|conv_norm_out|conv_out|norm_out|proj_out)\."
)
STAGE = re.compile(r"(\d+|all)(?:@(0?\.\d+))?")


def check(text: str | None, denoiser: str | None, trains_text: bool) -> None:
    """Usage when a run with these plans could not start."""
    for plan in (text, denoiser):
        if plan is not None:
            parse(plan)
    if text is not None and not trains_text:
        raise Usage("--unfreeze is about the text encoders", fix="add --train-text")


def parse(plan: str) -> list[Stage]:
    """The stages of a plan, first to last. Usage when it cannot be read or does not widen."""
    found = [STAGE.fullmatch(part) for part in plan.split(":")]
    stages = [(math.inf if m[1] == "all" else int(m[1]), float(m[2] or 0)) for m in found if m]
    counts, shares = [n for n, _ in stages], [share for _, share in stages]
    rises = all(sorted(set(row)) == row for row in (counts, shares))
    if len(stages) < len(found) or not rises or shares[0] != 0:
        raise Usage(
            f"cannot unfreeze by {plan!r}",
            why="it says how many of the last layers train, and from which share of the run more",
            fix="for example 3:all@0.5",
        )
    return stages


def starts(names: Iterable[str], plan: str | None) -> dict[str, float]:
    """The share of the run, in [0, 1), from which each parameter is trained.

    Parameters that no stage reaches are left out.
    """
    names = list(names)
    if plan is None:
        return dict.fromkeys(names, 0.0)
    blocks = sorted({block for name in names if (block := _block(name))})
    places = {block: len(blocks) - i for i, block in enumerate(blocks)}  # the last one is 1
    found = {}
    for name in names:
        block = _block(name)
        after = AFTER.search(name) and not block
        place = places[block] if block else 1 if after else math.inf
        share = next((share for count, share in parse(plan) if count >= place), None)
        if share is not None:
            found[name] = share
    return found


def split(
    parameters: Mapping[str, nn.Parameter], plan: str | None
) -> list[tuple[float, dict[str, nn.Parameter]]]:
    """Parameters by the share of the run from which they are trained, first to last."""
    at = starts(parameters, plan)
    return [
        (share, {name: parameters[name] for name in at if at[name] == share})
        for share in sorted(set(at.values()))
    ]


def _block(name: str) -> tuple[int, int] | None:
    """Where the block of a parameter stands in the model; None outside of blocks."""
    found = BLOCK.search(name)
    return (CONTAINERS.index(found[1]), int(found[2] or 0)) if found else None
