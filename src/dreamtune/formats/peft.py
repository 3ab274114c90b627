"""LoRA folders as PEFT writes them: adapter_model.safetensors beside adapter_config.json.

    base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight   (r, in) or (r, in, kh, kw)
                                                       .lora_B.weight   (out, r) or (out, r, 1, 1)
                                                       .lora_magnitude_vector   DoRA

One folder holds one component; a pipeline has a folder for each: unet, text_encoder, ... The format
is that of PeftModel.save_pretrained (0.21.2).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Damaged, Usage
from dreamtune.formats.entries import Entry, group
from dreamtune.formats.lora import TEXT_ENCODERS, LoraWeights, Shape, Update, canonical

if TYPE_CHECKING:
    from torch import Tensor

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
PREFIX = "base_model.model."


def dump(
    component: str, updates: Mapping[str, Update], flat: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, adapter_config) of one component's folder.

    `flat`: the model has no `text_model.` level, as transformers 5's CLIPTextModel. PEFT wants the
    very names of the model that it meets.
    """
    start = "text_model." if flat else ""
    weights = {module.removeprefix(start): plain(module, u) for module, u in updates.items()}
    found = {f"{PREFIX}{module}.{part}": t for (module, part), t in tensors(weights)}
    return found, {"peft_type": "LORA", "bias": "none", **config(component, weights)}


def plain(module: str, update: Update) -> LoraWeights:
    """The update as PEFT can hold it."""
    weights = update.factors()
    if weights.magnitude is not None and weights.base_norm:
        raise Usage(
            f"the DoRA of {module} has magnitudes for ComfyUI's rule",
            why="they can be turned into PEFT's only where the base is known",
            fix="name the base: --base",
        )
    if weights.magnitude is not None and weights.magnitude.shape[0] != weights.shape[0]:
        raise Usage(
            f"the DoRA of {module} has a magnitude for each input",
            why="diffusers and PEFT have one for each output",
            fix="write it as kohya",
        )
    return weights


def tensors(weights: Mapping[str, LoraWeights]) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """((module, part), tensor) of each matrix."""
    for module, w in weights.items():
        yield (module, DOWN), w.down.contiguous()
        yield (module, UP), w.up.contiguous()
        if w.magnitude is not None:
            out = w.shape[0]
            yield (
                (module, MAGNITUDE),
                w.magnitude.reshape((out,) if len(w.shape) == 2 else (1, out, 1, 1)),
            )


def config(component: str, weights: Mapping[str, LoraWeights]) -> dict[str, Any]:
    """LoraConfig's arguments: the commonest rank and alpha, a pattern for each that differs."""
    doras = [module for module, w in weights.items() if w.magnitude is not None]
    if doras and len(doras) < len(weights):
        raise Usage(
            f"{component} has modules with a DoRA and without",
            why="diffusers and PEFT know it for all or none",
            fix="write it as kohya",
        )
    # Without `text_model.` a name matches with and without it: PEFT compares ends of paths.
    named = {
        module.removeprefix("text_model.") if component in TEXT_ENCODERS else module: w
        for module, w in weights.items()
    }
    r = Counter(w.rank for w in named.values()).most_common(1)[0][0]
    alpha = Counter(w.alpha for w in named.values()).most_common(1)[0][0]
    return {
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {name: w.rank for name, w in named.items() if w.rank != r},
        "alpha_pattern": {name: w.alpha for name, w in named.items() if w.alpha != alpha},
        "target_modules": sorted(named),
        "use_dora": bool(doras),
    }


def entries(
    shapes: Mapping[str, Shape], given: Mapping[str, Any], component: str | None
) -> list[Entry]:
    """What the keys of adapter_model.safetensors mean, with adapter_config's arguments.

    `component`: from the folder's name, else it is told from the modules.
    """
    found = []
    for module, parts in group(_split(key) for key in shapes).items():
        where = component or _component(module, parts, shapes)
        scale = alpha(given, module, module, rank(parts, shapes))
        found.append(Entry(module, where, {canonical(where, module): 1}, parts, scale))
    return found


PARTS = {
    r"\.lora_A(?:\.default)?\.weight": "lora_down.weight",
    r"\.lora_B(?:\.default)?\.weight": "lora_up.weight",
    r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?": "magnitude",
}
SECOND_CLIP = 1280  # the width of OpenCLIP's bigG, which is SDXL's and SD 3's second encoder


def _split(key: str) -> tuple[str, str, str]:
    for ending, part in PARTS.items():
        if match := re.fullmatch(rf"{re.escape(PREFIX)}(.+?){ending}", key):
            return match[1], part, key
    raise Damaged(f"the LoRA key {key!r} has no meaning here")


def _component(module: str, parts: Mapping[str, str], shapes: Mapping[str, Shape]) -> str:
    """Of a file whose folder does not say."""
    if module.startswith(("transformer_blocks.", "single_transformer_blocks.")):
        return "transformer"
    if not re.search(r"(?:^|\.)encoder\.layers\.", module):
        return "unet"
    down = shapes[parts["lora_down.weight"]] if "lora_down.weight" in parts else ()
    return "text_encoder_2" if down[1:] == (SECOND_CLIP,) else "text_encoder"


def rank(parts: Mapping[str, str], shapes: Mapping[str, Shape]) -> int:
    """Of the down matrix; 0 where there is none, which is refused later."""
    shape = shapes[parts["lora_down.weight"]] if "lora_down.weight" in parts else ()
    return shape[0] if shape else 0


def alpha(given: Mapping[str, Any], name: str, path: str, rank: int) -> float:
    """The module's alpha, in the sense of alpha / r. PEFT's rule: utils.other.get_pattern_key.

    PEFT takes the keys of alpha_pattern for regular expressions. Those of a file are not run: only
    whole paths, and ends of paths, are understood.
    """
    value = given.get("lora_alpha", rank)
    patterns = given.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or any(re.search(r"[^\w.^-]", key) for key in patterns):
        raise Damaged(f"the config of {name} has an alpha_pattern that is no map from module paths")
    for key, own in patterns.items():
        if path == key.removeprefix("^") or path.endswith(f".{key}"):
            value = own
            break
    # rsLoRA scales by alpha / sqrt(r): https://arxiv.org/abs/2312.03732
    factor = math.sqrt(rank) if given.get("use_rslora") else 1
    try:
        return float(value) * factor
    except (TypeError, ValueError, OverflowError):
        raise Damaged(f"the config of {name} gives it the alpha {value!r}") from None
