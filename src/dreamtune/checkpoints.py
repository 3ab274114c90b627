"""Training state on disk: safetensors and JSON, so that reading it runs no code.

    checkpoints/step-000300.safetensors   parameters and optimizer state, by name
    checkpoints/step-000300.json          written after it: the step and the file's SHA-256

Random numbers need no state (see draws.py). Older checkpoints go only once a newer one is durable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import console, fsops
from dreamtune.errors import Damaged, NonFinite

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

KEEP = 2


def save(
    folder: Path, step: int, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> None:
    """Write the state after `step` updates. NonFinite, and nothing written, when a weight is."""
    require_finite(parameters, step)
    tensors = {f"parameters.{name}": p.detach() for name, p in parameters.items()}
    for name, p in parameters.items():
        state = optimizer.state.get(p, {})
        tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
    path = fsops.make_folder(folder) / f"step-{step:06d}.safetensors"
    fsops.write_safetensors(path, tensors)
    fsops.write_json(path.with_suffix(".json"), {"step": step, "sha256": fsops.hash_file(path)})
    for old in _notes(folder)[:-KEEP]:
        fsops.remove_tree(old.with_suffix(".safetensors"))
        fsops.remove_tree(old)


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
        if path.is_file() and fsops.hash_file(path) == _read(note).get("sha256"):
            return path
        console.warn(f"{path} is damaged, so the one before it is used")
    return None


def step_of(path: Path) -> int:
    """The number of updates behind a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def restore(path: Path, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Put the state back; Damaged when it belongs to other parameters."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    stored = {k.removeprefix("parameters.") for k in tensors if k.startswith("parameters.")}
    if stored != parameters.keys():
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
    return sorted(folder.glob("step-*.json"))


def _read(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}
