"""LoRA files as diffusers writes them: pytorch_lora_weights.safetensors, for load_lora_weights.

    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight   (r, in) or (r, in, kh, kw)
                                           .lora_B.weight   (out, r) or (out, r, 1, 1)
    text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight, .up.weight

There is no alpha among the tensors. The metadata entry `lora_adapter_metadata` is JSON with the
arguments of PEFT's LoraConfig, each behind its component's name ("unet.r"); without it a reader
takes alpha = r.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Damaged
from dreamtune.formats.lora import TEXT_ENCODERS, Adapter, LoraWeights, canonical, checked

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS = ("unet", "transformer", *TEXT_ENCODERS)
CONFIG = "lora_adapter_metadata"
# The ends of keys. For text encoders diffusers' loader (0.42.1) knows only the third kind for sure:
# with the first it stops at "Could not automatically infer state dict type" unless an attention
# projection is among the modules. Its own training scripts write the second kind too, for UNets.
PEFT = (".lora_A.weight", ".lora_B.weight")
TEXT = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
DOWN_UP = (PEFT, (".lora.down.weight", ".lora.up.weight"), TEXT)


def dump(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a diffusers file that restores every rank and alpha."""
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for component, modules in adapter.items():
        down, up = TEXT if component in TEXT_ENCODERS else PEFT
        for module, weights in modules.items():
            tensors[f"{component}.{module}{down}"] = weights.down.contiguous()
            tensors[f"{component}.{module}{up}"] = weights.up.contiguous()
        config |= {
            f"{component}.{key}": value for key, value in _config(component, modules).items()
        }
    return tensors, {"format": "pt", CONFIG: json.dumps(config, sort_keys=True)}


def parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Adapter:
    """The adapter in the tensors and metadata of a diffusers file. Damaged names an unknown key."""
    config = _load_config(metadata)
    adapter: Adapter = defaultdict(dict)
    for key, down in tensors.items():
        module, up_key = _down(key)
        if up_key is None:
            if not _is_up(key, tensors):
                raise Damaged(f"the LoRA key {key!r} has no meaning here")
            continue
        component, _, path = module.partition(".")
        if component not in COMPONENTS or up_key not in tensors:
            raise Damaged(f"the LoRA key {key!r} has no known component or no {up_key!r}")
        rank = down.shape[0] if down.dim() else 0  # a scalar has none, and is refused below
        alpha = _alpha(config.get(component, {}), path, rank)
        path = canonical(component, path)
        if path in adapter[component]:
            raise Damaged(f"{module} is a second LoRA for {path}")
        adapter[component][path] = checked(module, down, tensors[up_key], alpha)
    return dict(adapter)


def _config(component: str, modules: Mapping[str, LoraWeights]) -> dict[str, Any]:
    """PEFT's LoraConfig: the commonest rank and alpha, a pattern for each module that differs."""
    # Without `text_model.` a name matches with and without it: PEFT compares ends of paths.
    named = {
        module.removeprefix("text_model.") if component in TEXT_ENCODERS else module: weights
        for module, weights in modules.items()
    }
    r = Counter(weights.rank for weights in named.values()).most_common(1)[0][0]
    alpha = Counter(weights.alpha for weights in named.values()).most_common(1)[0][0]
    return {
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {name: w.rank for name, w in named.items() if w.rank != r},
        "alpha_pattern": {name: w.alpha for name, w in named.items() if w.alpha != alpha},
        "target_modules": sorted(named),
    }


def _load_config(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{component: LoraConfig arguments}; empty where the file has none."""
    try:
        entries = json.loads(metadata.get(CONFIG, "{}")).items()
    except (ValueError, AttributeError, RecursionError):
        raise Damaged(f"the metadata {CONFIG} is not a JSON object") from None
    config: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in entries:
        component, _, argument = key.partition(".")
        config[component][argument] = value
    return config


def _alpha(config: Mapping[str, Any], path: str, rank: int) -> float:
    """The module's alpha, in the sense of alpha / r. PEFT's rule: utils.other.get_pattern_key.

    PEFT takes the keys of alpha_pattern for regular expressions. Those of a file are not run: only
    whole paths, and ends of paths, are understood.
    """
    alpha = config.get("lora_alpha", rank)
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or any(re.search(r"[^\w.^-]", key) for key in patterns):
        raise Damaged(
            f"the metadata {CONFIG} has an alpha_pattern that is no map from module paths"
        )
    for key, value in patterns.items():
        if path == key.removeprefix("^") or path.endswith(f".{key}"):
            alpha = value
            break
    # rsLoRA scales by alpha / sqrt(r): https://arxiv.org/abs/2312.03732
    factor = math.sqrt(rank) if config.get("use_rslora") else 1
    try:
        return float(alpha) * factor
    except (TypeError, ValueError, OverflowError):
        raise Damaged(f"the metadata {CONFIG} gives {path!r} the alpha {alpha!r}") from None


def _down(key: str) -> tuple[str, str | None]:
    """(module, key of its up matrix) if `key` is a down matrix, else (key, None)."""
    for down, up in DOWN_UP:
        if key.endswith(down):
            module = key.removesuffix(down)
            return module, module + up
    return key, None


def _is_up(key: str, tensors: Mapping[str, Tensor]) -> bool:
    return any(key.endswith(up) and key.removesuffix(up) + down in tensors for down, up in DOWN_UP)
