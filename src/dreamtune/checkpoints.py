"""Training state on disk: safetensors and JSON, so that reading it runs no code.

    checkpoints/step-000300.safetensors   parameters and optimizer state, by name; where it was made
    checkpoints/step-000300.json          written after it: the step and the file's SHA-256

Random numbers need no state (see draws.py). Older checkpoints go only once a newer one is durable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import console, fsops
from dreamtune.errors import Damaged, NonFinite

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

KEEP = 2
MADE_ON = "made_on"


def save(
    folder: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    made_on: Mapping[str, Any] | None = None,
) -> None:
    """Write the state after `step` updates. NonFinite, and nothing written, when a weight is.

    made_on: what the bits of the next updates depend on: device, precision, processes
    """
    require_finite(parameters, step)
    tensors = {f"parameters.{name}": p.detach() for name, p in parameters.items()}
    for name, p in parameters.items():
        state = optimizer.state.get(p, {})
        tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
    path = fsops.make_folder(folder) / f"step-{step:06d}.safetensors"
    fsops.write_safetensors(path, tensors, {MADE_ON: json.dumps(made_on or {}, sort_keys=True)})
    fsops.write_json(path.with_suffix(".json"), {"step": step, "sha256": fsops.hash_file(path)})
    _retire(folder, step)


def _retire(folder: Path, step: int) -> None:
    """Keep the newest few up to `step`. Later ones are damaged, or the run would be there.

    A note goes before its tensors, so that what is half removed does not look damaged.
    """
    kept = [note for note in _notes(folder) if step_of(note) <= step][-KEEP:]
    stems = {note.stem for note in kept}
    for old in sorted(folder.glob("step-*"), key=lambda p: p.suffix != ".json"):
        if old.stem not in stems:
            fsops.discard(old)


def require_finite(parameters: Mapping[str, nn.Parameter], step: int) -> None:
    """NonFinite when a weight is."""
    bad = next((name for name, p in parameters.items() if not p.isfinite().all()), None)
    if bad:
        raise NonFinite(
            f"{bad} is not finite at step {step}",
            why="the training has diverged",
            fix="run it again with a lower --learning-rate",
        )


def latest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; says so when a newer one is not."""
    for note in reversed(_notes(folder)):
        path = note.with_suffix(".safetensors")
        if whole(note):
            return path
        console.warn(f"{path} is damaged, so the one before it is used")
    return None


def whole(note: Path) -> bool:
    """Whether the tensors beside a note are those that it was written for."""
    try:
        said = dict(json.loads(note.read_bytes()))
        found = {"step": step_of(note), "sha256": fsops.hash_file(note.with_suffix(".safetensors"))}
    except (OSError, ValueError, TypeError, RecursionError):  # not there, or cannot be read
        return False
    return said == found


def step_of(path: Path) -> int:
    """The number of updates behind a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def drift(path: Path, made_on: Mapping[str, Any]) -> list[str]:
    """How the machine differs from the one that wrote a checkpoint: "device was cuda, is cpu"."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        was = json.loads((file.metadata() or {}).get(MADE_ON, "{}"))
    return [
        f"{name} was {was[name]}, is {made_on.get(name)}"
        for name in sorted(was)
        if was[name] != made_on.get(name)
    ]


def restore(path: Path, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Put the state back; Damaged when it belongs to other parameters."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    stored = {name: t.shape for name, t in tensors.items() if name.startswith("parameters.")}
    if stored != {f"parameters.{name}": p.shape for name, p in parameters.items()}:
        raise Damaged(f"{path} holds other parameters", fix="start again with --fresh")
    for name, p in parameters.items():
        p.data.copy_(tensors[f"parameters.{name}"])
        optimizer.state[p] = {
            key.split(".")[1]: _on_device(key, value, p)
            for key, value in tensors.items()
            if key.startswith("optimizer.") and key.split(".", 2)[2] == name
        }


def _on_device(key: str, value: Any, p: nn.Parameter) -> Any:
    """AdamW keeps its step counter on the CPU unless it is fused on a GPU."""
    counts_on_cpu = key.startswith("optimizer.step.") and p.device.type == "cpu"
    return value if counts_on_cpu else value.to(p.device)


def _notes(folder: Path) -> list[Path]:
    """The notes in a folder, in the order of their steps."""
    named = (p for p in folder.glob("step-*.json") if re.fullmatch(r"step-\d+", p.stem))
    return sorted(named, key=step_of)
