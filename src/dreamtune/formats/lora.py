"""The neutral form of an adapter, between what was trained and every file layout.

An adapter is {component: {module: Update}}. Components carry diffusers' names ("unet" or
"transformer", "text_encoder", "text_encoder_2", ...); modules are paths as in a checkpoint on the
Hub: "down_blocks.0.attentions.0.proj_in", "text_model.encoder.layers.0.self_attn.q_proj".

LoRA (https://arxiv.org/abs/2106.09685, section 4.1) adds to a frozen weight W

    delta W = alpha / r * up @ down

and DoRA (https://arxiv.org/abs/2402.09353, equation 5) puts a learned magnitude m in place of the
norm of each output's weights, so that what it adds depends on W:

    delta W = m * (W + alpha / r * up @ down) / |W + alpha / r * up @ down| - W
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from dreamtune.errors import Damaged, Usage

if TYPE_CHECKING:
    from torch import Tensor, nn

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
DENOISERS = ("unet", "transformer")
Shape = tuple[int, ...]


class Update(Protocol):
    """What was learned about one module, in whatever form a file holds it."""

    @property
    def shape(self) -> Shape:
        """Of the weight: (out, in), (out, in, kh, kw), or (out, in * kh * kw) where not said."""

    @property
    def rank(self) -> int: ...

    @property
    def alpha(self) -> float: ...

    @property
    def magnitude(self) -> Tensor | None:
        """DoRA's, (out, 1, ...) or, as old LyCORIS has it, of each input: (1, in, ...)."""

    @property
    def base_norm(self) -> bool:
        """Whether the norm is |W|, as ComfyUI takes it; else |W + change|, as the paper does."""

    def change(self) -> Tensor:
        """What is added to the weight before its magnitude is set; in `shape`, float32."""

    def factors(self) -> LoraWeights:
        """The same update as a LoRA, exact but for rounding."""


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """The update of one module: linear or convolution."""

    down: Tensor  # (r, in) or (r, in, kh, kw)
    up: Tensor  # (out, r) or (out, r, 1, 1)
    alpha: float
    magnitude: Tensor | None = None
    base_norm: bool = False

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> Shape:
        return (self.up.shape[0], *self.down.shape[1:])

    def change(self) -> Tensor:
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.alpha / self.rank * product).reshape(self.shape)

    def factors(self) -> LoraWeights:
        return self


Adapter = dict[str, dict[str, Update]]


def delta(update: Update, weight: Tensor | None = None) -> Tensor:
    """The change of a module's weight, float32, shaped as `weight` where that is given.

    DoRA needs the `weight` that it changes.
    """
    change = update.change()
    if weight is not None:
        change = change.to(weight.device).reshape(weight.shape)
    if update.magnitude is None:
        return change
    if weight is None:
        raise Usage("what a DoRA adds depends on the base", fix="name the base: --base")
    weight = weight.float()
    magnitude, norm = _dora(update, weight, change)
    return (weight + change) * (magnitude / norm) - weight


def _dora(update: Update, weight: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """(magnitude, norm), each (out, 1, ...) or (1, in, ...)."""
    import torch

    assert update.magnitude is not None
    magnitude = update.magnitude.float().to(weight.device)
    kept = 0 if magnitude.numel() == magnitude.shape[0] else 1
    rest = [axis for axis in range(weight.dim()) if axis != kept]
    normed = weight if update.base_norm else weight + change
    norm = torch.linalg.vector_norm(normed, dim=rest, keepdim=True)
    return magnitude.reshape(norm.shape), norm


def with_norm(update: LoraWeights, weight: Tensor, base_norm: bool) -> LoraWeights:
    """The same DoRA with its magnitude for the norm of the base, or for the paper's."""
    other = replace(update, base_norm=base_norm)
    weight, change = weight.float(), update.change().reshape(weight.shape)
    magnitude, old = _dora(update, weight, change)
    _, new = _dora(other, weight, change)
    return replace(other, magnitude=magnitude / old * new)


def for_base_norm(
    adapter: Adapter, weights: Callable[[str, str], Tensor], base_norm: bool
) -> Adapter:
    """The adapter with the magnitudes of DoRA for the norm of the base, or for the paper's.

    `weights` gives the base's weight for (component, module); a LoRA needs none.
    """
    return {
        component: {
            module: update
            if update.magnitude is None or update.base_norm == base_norm
            else with_norm(update.factors(), weights(component, module), base_norm)
            for module, update in modules.items()
        }
        for component, modules in adapter.items()
    }


def checked(name: str, weights: LoraWeights) -> LoraWeights:
    """The weights of the module `name` as a file gave them; Damaged if they do not fit together."""
    down, up, magnitude = weights.down, weights.up, weights.magnitude
    if not 2 <= down.dim() == up.dim() <= 4 or up.shape[1] != down.shape[0] or not up.numel():
        why = f"down is {tuple(down.shape)} and up is {tuple(up.shape)}"
        raise Damaged(f"{name} is no LoRA", why=why)
    if not math.isfinite(weights.alpha) or weights.alpha == 0:
        raise Damaged(f"{name} has the alpha {weights.alpha}")
    check_magnitude(name, magnitude, weights.shape)
    return weights


def check_magnitude(name: str, magnitude: Tensor | None, shape: Shape) -> None:
    """Damaged when there is a magnitude, neither of each output nor of each input."""
    ones = (1,) * (len(shape) - 2)
    if magnitude is not None and magnitude.shape not in (
        (shape[0], 1, *ones),
        (1, shape[1], *ones),
    ):
        why = f"its magnitude is {tuple(magnitude.shape)} for a weight of {shape}"
        raise Damaged(f"{name} is no DoRA", why=why)


def canonical(component: str, module: str) -> str:
    """The module's path as checkpoints name it.

    transformers 5 has no `text_model.` level in CLIPTextModel; files, other tools and
    CLIPTextModelWithProjection have it.
    """
    if component in TEXT_ENCODERS and module.startswith("encoder.layers."):
        return f"text_model.{module}"
    return module


def collect(component: str, model: nn.Module, name: str = "default") -> dict[str, Update]:
    """The LoRA or DoRA called `name` that PEFT holds in a live `model` (copies on the CPU)."""
    found: dict[str, Update] = {}
    for module, layer in model.named_modules():
        if name in getattr(layer, "lora_A", ()):
            found[canonical(component, module)] = _collected(layer, name)
    return found


def _collected(layer: Any, name: str) -> LoraWeights:
    down, up = (part[name].weight.detach().cpu().clone() for part in (layer.lora_A, layer.lora_B))
    rank, alpha = down.shape[0], float(layer.lora_alpha[name])
    if not math.isclose(layer.scaling[name], alpha / rank):  # rsLoRA: arXiv:2312.03732
        alpha = layer.scaling[name] * rank
    magnitude = None
    if name in layer.lora_magnitude_vector:
        magnitude = layer.lora_magnitude_vector[name].weight.detach().cpu().clone()
        magnitude = magnitude.reshape(-1, *[1] * (down.dim() - 1))
    return LoraWeights(down, up, alpha, magnitude)


def live_deltas(
    component: str, model: nn.Module, name: str = "default"
) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """(component, module, base's weight, what PEFT itself adds to it), float32 on the CPU.

    One by one, since together they are as large as the model.
    """
    for module, layer in model.named_modules():
        if name in getattr(layer, "lora_A", ()):
            weight = layer.get_base_layer().weight.detach().float()
            change = _live_delta(layer, name, weight)
            yield component, canonical(component, module), weight.cpu(), change.cpu()


def _live_delta(layer: Any, name: str, weight: Tensor) -> Tensor:
    change = layer.get_delta_weight(name).detach().float()
    if name not in layer.lora_magnitude_vector:
        return change
    dora = layer.lora_magnitude_vector[name]
    norm = dora.get_weight_norm(weight, change, scaling=1).reshape(-1)
    gain = dora.weight.detach().reshape(-1) / norm
    return gain.reshape(-1, *[1] * (weight.dim() - 1)) * (weight + change) - weight


def signature(adapter: Adapter) -> dict[str, Shape]:
    """The weight shape that each "component.module" must have for this adapter to fit."""
    return {
        f"{component}.{module}": update.shape
        for component, modules in adapter.items()
        for module, update in modules.items()
    }


def layers(component: str, model: nn.Module) -> dict[str, Any]:
    """The linear layers and convolutions of a base by path, whether a LoRA sits on them or not."""
    from torch import nn

    return {
        canonical(component, path.removesuffix(".base_layer")): layer
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in path
    }


def shapes(component: str, model: nn.Module) -> dict[str, Shape]:
    """The weight shape of each "component.module" that a LoRA can sit on."""
    found = layers(component, model).items()
    return {f"{component}.{path}": tuple(layer.weight.shape) for path, layer in found}


def misfits(wanted: Mapping[str, Shape], base: Mapping[str, Shape]) -> list[str]:
    """One sentence for each module that `base` lacks or has in another shape than `wanted`."""
    problems = []
    for module, shape in wanted.items():
        if module not in base:
            problems.append(f"{module} is not in the base model")
        elif shape not in (base[module], _flat(base[module])):
            problems.append(
                f"{module} is {base[module]} in the base model and {shape} in the adapter"
            )
    return problems


def _flat(shape: Shape) -> Shape:
    """(out, the rest), as files hold the factors of a convolution."""
    return (shape[0], math.prod(shape[1:]))


def put_in(modules: Mapping[str, nn.Module], adapter: Adapter, weight: float, what: str) -> None:
    """Add weight * delta W to the weights of a base: summed in fp32 and cast once, as UIs do.

    `modules`: by component. Usage, naming `what`, before anything is changed when they do not fit.
    """
    base = {name: layers(name, module) for name, module in modules.items()}
    known = {
        f"{c}.{path}": tuple(m.weight.shape) for c, ms in base.items() for path, m in ms.items()
    }
    if problems := misfits(signature(adapter), known):
        raise Usage(f"{what}: it does not fit", why=problems[0], fix="use the base it is for")
    for component, updates in adapter.items():
        for path, update in updates.items():
            target = base[component][path].weight
            change = delta(update, target.data)
            target.data = (target.data.float() + weight * change).to(target.dtype)
