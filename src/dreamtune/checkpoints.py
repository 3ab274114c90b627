"""Training state on disk: safetensors and JSON, so that reading it runs no code.

    checkpoints/step-000300.safetensors   parameters, their average, optimizer state, by name
    checkpoints/step-000300.json          written after it: the step and the file's SHA-256

Random numbers need no state (see draws.py). Older checkpoints go only once a newer one is durable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import console, fsops, optimizers
from dreamtune.errors import Damaged, NonFinite

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.amp import GradScaler
    from torch.optim import Optimizer

KEEP = 2
MADE_ON, NUMBERS = "made_on", "numbers"  # keys of the metadata


def save(
    folder: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    made_on: Mapping[str, Any] | None = None,
    *,
    average: Mapping[str, Tensor] | None = None,
    scaler: GradScaler | None = None,
) -> None:
    """Write the state after `step` updates. NonFinite, and nothing written, when a weight is.

    made_on: what the bits of the next updates depend on: device, precision, processes
    average: of the parameters, by name; scaler: of losses, for fp16
    """
    require_finite(parameters, step)
    remembered, numbers = optimizers.dump(optimizer, parameters)
    parts = {"parameters": parameters, "average": average or {}, "optimizer": remembered}
    tensors = {f"{part}.{n}": t.detach() for part, named in parts.items() for n, t in named.items()}
    path = fsops.make_folder(folder) / f"step-{step:06d}.safetensors"
    scale = scaler.state_dict() if scaler else {}
    counts = {"tensors": len(tensors), "optimizer": numbers, "scaler": scale}
    said = {MADE_ON: made_on or {}, NUMBERS: counts}
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in said.items()}
    fsops.write_safetensors(path, tensors, metadata)
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
    tensors = note.with_suffix(".safetensors")
    if not (note.is_file() and tensors.is_file()):  # opening a FIFO would wait for ever
        return False
    try:
        said = dict(json.loads(note.read_bytes()))
        found = {"step": step_of(note), "sha256": fsops.hash_file(tensors)}
    except (OSError, ValueError, TypeError, RecursionError):  # not there, or cannot be read
        return False
    return said == found


def step_of(path: Path) -> int:
    """The number of updates behind a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def made_on(path: Path) -> dict[str, Any]:
    """What `save` was told of the machine; empty when it was told nothing."""
    return dict(_read(path, tensors=False)[1].get(MADE_ON, {}))


def restore(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    *,
    average: Mapping[str, Tensor] | None = None,
    scaler: GradScaler | None = None,
) -> None:
    """Put the state back; Damaged when it belongs to other parameters."""
    tensors, said = _read(path, next(iter(parameters.values())).device)
    numbers = said.get(NUMBERS)
    if not isinstance(numbers, dict) or numbers.get("tensors") != len(tensors):
        raise _foreign(path)
    parts: dict[str, dict[str, Tensor]] = {"parameters": {}, "average": {}, "optimizer": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    for part, ours in (("parameters", parameters), ("average", average or {})):
        if {n: t.shape for n, t in parts[part].items()} != {n: t.shape for n, t in ours.items()}:
            raise Damaged(f"{path} holds other parameters", fix="start again with --fresh")
        for name, tensor in ours.items():
            tensor.data.copy_(parts[part][name])
    try:
        optimizers.restore(optimizer, parameters, parts["optimizer"], numbers["optimizer"])
        if scaler:
            scaler.load_state_dict(numbers["scaler"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        raise _foreign(path) from None


def _read(
    path: Path, device: object = "cpu", tensors: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint, on a device, and what is said beside them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device=str(device)) as file:
            said = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
            names = file.keys() if tensors else []
            return {name: file.get_tensor(name) for name in names}, said
    except (SafetensorError, OSError, ValueError, RecursionError):
        raise _foreign(path) from None


def _foreign(path: Path) -> Damaged:
    return Damaged(f"{path} is not a state that was saved", fix="start again with --fresh")


def _notes(folder: Path) -> list[Path]:
    """The notes in a folder, in the order of their steps."""
    named = (p for p in folder.glob("step-*.json") if re.fullmatch(r"step-\d+", p.stem))
    return sorted(named, key=step_of)
