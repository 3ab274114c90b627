"""--resume: where a run goes on, and whether it can go on as it was.

Never a silent new run, never a silent loss of an old one, never other bits without a word.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import checkpoints, console
from dreamtune.artifacts import ASKED, CHECKPOINTS
from dreamtune.errors import NotFound, Usage, WouldOverwrite
from dreamtune.store import Draft
from dreamtune.surroundings import surroundings

if TYPE_CHECKING:
    from dreamtune.stages.train import Run

DRIFT = "drift"  # what a checkpoint says of changes of machine before it
SHOWN = 4  # settings that differ


def point(ask: Run, draft: Draft) -> Path | None:
    """The checkpoint to go on from; None for a new run."""
    if ask.fresh and ask.resume:
        raise Usage("--resume goes on with a run and --fresh drops it", fix="give one of them")
    if ask.fresh:
        draft.clear()
        return None
    checkpoint = checkpoints.latest(draft.path / CHECKPOINTS)
    if ask.resume and checkpoint is None:
        raise NotFound(
            f"nothing to resume for {ask.name}",
            why=_others(ask) or "no run with these settings has left a checkpoint",
            fix="give the settings it had, or run it without --resume",
        )
    if checkpoint and not ask.resume:
        raise WouldOverwrite(
            f"{ask.name} was interrupted after step {checkpoints.step_of(checkpoint)}",
            fix="--resume goes on from there, --fresh starts over",
        )
    return checkpoint


def _others(ask: Run) -> str:
    """How the nearest interrupted run of this name differs from what is asked for now."""
    now = {"recipe": ask.recipe, "parents": [*ask.parents], **surroundings()}
    found = []
    for folder in ask.store.drafts():
        if folder.parent.name == ask.name and list((folder / CHECKPOINTS).glob("step-*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                then = dict(json.loads((folder / CHECKPOINTS / ASKED).read_bytes()))
                then.pop("key", None)
                found.append(_changes(then, now))
    nearest = min(found, key=len, default=[])
    more = f" and {len(nearest) - SHOWN} more" if len(nearest) > SHOWN else ""
    return f"the interrupted run differs: {', '.join(nearest[:SHOWN])}{more}" if nearest else ""


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """ "train.steps was 400, is 500" for each setting that differs."""
    old, new = dict(_flat(then)), dict(_flat(json.loads(json.dumps(now))))
    return [
        f"{name.removeprefix('recipe.')} was {old.get(name)}, is {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def drifted(checkpoint: Path, here: Mapping[str, Any], allowed: bool) -> Sequence[str]:
    """Changes of machine in the past of a run that goes on here; Usage for one that is not allowed.

    here: what the bits of the next updates depend on, as checkpoints.save notes it
    """
    then = checkpoints.made_on(checkpoint)
    past = [str(change) for change in then.pop(DRIFT, [])]
    step, changes = checkpoints.step_of(checkpoint), _changes(then, here) if then else []
    if changes and not allowed:
        raise Usage(
            f"step {step} was made on another machine",
            why=", ".join(changes),
            fix="go on there, or take --allow-drift: a good adapter, and not the same bytes",
        )
    if changes:
        console.warn(f"from step {step} on the bytes are other ones: {', '.join(changes)}")
    return [*past, *(f"step {step}: {change}" for change in changes)]
