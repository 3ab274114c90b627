"""PEFT's layers in a model: new ones, or those of an adapter to go on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Usage
from dreamtune.methods import Start

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamtune.formats.lora import LoraWeights

Parameters = dict[str, "nn.Parameter"]
NAME = "default"  # of PEFT's adapter


def inject(model: nn.Module, targets: Sequence[str], **settings: Any) -> Parameters:
    """Insert layers, and freeze the rest; what is trained, in fp32.

    settings: of peft.LoraConfig
    """
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(target_modules=list(targets), **settings), model)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for p in trainable.values():
        p.data = p.data.float()
    return trainable


def begin(
    start: Start, models: Mapping[str, nn.Module], base: str, dropout: float
) -> dict[str, Parameters]:
    """The updates of an adapter as layers that are trained on, by component.

    models: by component. Usage when they do not fit, before anything is changed.
    """
    from dreamtune.formats import lora

    shapes = {k: v for part, model in models.items() for k, v in lora.shapes(part, model).items()}
    if problems := lora.misfits(lora.signature(start.adapter), shapes):
        raise Usage(
            f"{start.name} does not fit the base {base}",
            why=problems[0],
            fix="use the base it is for",
        )
    return {part: _begin(start, part, model, dropout) for part, model in models.items()}


def _begin(start: Start, part: str, model: nn.Module, dropout: float) -> Parameters:
    """The updates of one component; one that the adapter leaves alone has nothing to train."""
    from dreamtune.formats import lora

    layers = lora.layers(part, model)
    weights = {name: layer.weight for name, layer in layers.items()}
    adapter = {part: start.adapter.get(part, {})}
    fitting = lora.for_base_norm(adapter, lambda part, name: weights[name].cpu(), False)[part]
    if not fitting:
        model.requires_grad_(False)
        return {}
    live = {lora.canonical(part, path): path for path, _ in model.named_modules()}
    updates = {live[name]: update.factors() for name, update in fitting.items()}
    dora = {update.magnitude is not None for update in updates.values()}
    if len(dora) > 1:
        raise Usage(f"{start.name} is DoRA in some modules and LoRA in others")
    found = inject(
        model,
        [*updates],
        r=1,
        rank_pattern={path: update.rank for path, update in updates.items()},
        alpha_pattern={path: update.alpha for path, update in updates.items()},
        lora_dropout=dropout,
        use_dora=True in dora,
    )
    for path, update in updates.items():
        _fill(model.get_submodule(path), update)
    return found


def _fill(layer: Any, update: LoraWeights) -> None:
    """The numbers of an update in its layer."""
    parts: list[tuple[Any, Tensor]] = [(layer.lora_A, update.down), (layer.lora_B, update.up)]
    if update.magnitude is not None:
        parts.append((layer.lora_magnitude_vector, update.magnitude))
    for part, values in parts:
        own = part[NAME].weight
        own.data.copy_(values.reshape(own.shape))
