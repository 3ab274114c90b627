"""The neutral form of a LoRA, between what was trained and every file layout.

An adapter is {component: {module: LoraWeights}}. Components carry diffusers' names ("unet" or
"transformer", "text_encoder", "text_encoder_2"); modules are paths as in a checkpoint on the Hub:
"down_blocks.0.attentions.0.proj_in", "text_model.encoder.layers.0.self_attn.q_proj".

LoRA (https://arxiv.org/abs/2106.09685, section 4.1) adds to a frozen weight W

    delta W = alpha / r * up @ down
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamtune.errors import Damaged

if TYPE_CHECKING:
    from torch import Tensor, nn

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """The update of one module: linear or convolution."""

    down: Tensor  # (r, in) or (r, in, kh, kw)
    up: Tensor  # (out, r) or (out, r, 1, 1)
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


Adapter = dict[str, dict[str, LoraWeights]]


def delta(weights: LoraWeights) -> Tensor:
    """The change of the module's weight, (out, in) or (out, in, kh, kw), in float32."""
    down, up = weights.down.float(), weights.up.float()
    product = up.flatten(1) @ down.flatten(1)
    return (weights.alpha / weights.rank * product).reshape(up.shape[0], *down.shape[1:])


def checked(name: str, down: Tensor, up: Tensor, alpha: float | None) -> LoraWeights:
    """The weights of the module `name` as a file gave them; Damaged if they do not fit together.

    alpha None is the rank, so scale 1.
    """
    if not 2 <= down.dim() == up.dim() <= 4 or up.shape[1] != down.shape[0] or not up.numel():
        why = f"down is {tuple(down.shape)} and up is {tuple(up.shape)}"
        raise Damaged(f"{name} is no LoRA", why=why)
    alpha = down.shape[0] if alpha is None else alpha
    if not math.isfinite(alpha) or alpha == 0:
        raise Damaged(f"{name} has the alpha {alpha}")
    return LoraWeights(down, up, float(alpha))


def canonical(component: str, module: str) -> str:
    """The module's path as checkpoints name it.

    transformers 5 has no `text_model.` level in CLIPTextModel; files, other tools and
    CLIPTextModelWithProjection have it.
    """
    if component in TEXT_ENCODERS and module.startswith("encoder."):
        return f"text_model.{module}"
    return module


def collect(component: str, model: nn.Module, name: str = "default") -> dict[str, LoraWeights]:
    """The LoRA called `name` that PEFT holds in a live `model` (copies on the CPU)."""
    found = {}
    for module, layer in model.named_modules():
        if name in getattr(layer, "lora_A", ()):
            down, up = (
                part[name].weight.detach().cpu().clone() for part in (layer.lora_A, layer.lora_B)
            )
            alpha = float(layer.scaling[name]) * down.shape[0]  # rsLoRA's scale is another one
            found[canonical(component, module)] = LoraWeights(down, up, alpha)
    return found


def signature(adapter: Adapter) -> dict[str, Shape]:
    """The weight shape that each "component.module" must have for this adapter to fit."""
    return {
        f"{component}.{module}": (weights.up.shape[0], *weights.down.shape[1:])
        for component, modules in adapter.items()
        for module, weights in modules.items()
    }


def shapes(component: str, model: nn.Module) -> dict[str, Shape]:
    """The weight shape of each "component.module" that a LoRA can sit on, with or without one."""
    from torch import nn

    return {
        f"{component}.{canonical(component, module.removesuffix('.base_layer'))}": tuple(
            layer.weight.shape
        )
        for module, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in module
    }


def misfits(wanted: Mapping[str, Shape], base: Mapping[str, Shape]) -> list[str]:
    """One sentence for each module that `base` lacks or has in another shape than `wanted`."""
    problems = []
    for module, shape in wanted.items():
        if module not in base:
            problems.append(f"{module} is not in the base model")
        elif base[module] != shape:
            problems.append(
                f"{module} is {base[module]} in the base model and {shape} in the adapter"
            )
    return problems
