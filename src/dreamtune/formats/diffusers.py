"""LoRA files as diffusers writes them: pytorch_lora_weights.safetensors, for load_lora_weights.

    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight   (r, in) or (r, in, kh, kw)
                                           .lora_B.weight   (out, r) or (out, r, 1, 1)
                                           .lora_magnitude_vector   DoRA: (out,) or (1, out, 1, 1)
    text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight, .up.weight

There is no alpha among the tensors. The metadata entry `lora_adapter_metadata` is JSON with the
arguments of PEFT's LoraConfig, each behind its component's name ("unet.r"); without it a reader
takes alpha = r. Older files lack the component, or end in `.processor.to_q_lora.down.weight`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Damaged
from dreamtune.formats import peft
from dreamtune.formats.entries import Entry, group
from dreamtune.formats.lora import DENOISERS, TEXT_ENCODERS, Adapter, Shape, canonical

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS = (*DENOISERS, *TEXT_ENCODERS)
CONFIG = "lora_adapter_metadata"
# For text encoders diffusers' loader (0.42.1) knows only these names for sure: with PEFT's it stops
# at "Could not automatically infer state dict type" unless an attention projection is among them,
# and transformers 5 takes a magnitude without its last word for a stranger and draws another.
TEXT = {
    peft.DOWN: "lora_linear_layer.down.weight",
    peft.UP: "lora_linear_layer.up.weight",
    peft.MAGNITUDE: f"{peft.MAGNITUDE}.weight",
}


def dump(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a diffusers file that restores every rank, alpha and magnitude."""
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for component, updates in adapter.items():
        weights = {module: peft.plain(module, update) for module, update in updates.items()}
        names = TEXT if component in TEXT_ENCODERS else {}
        for key, tensor in peft.tensors(weights):
            module, part = key
            tensors[f"{component}.{module}.{names.get(part, part)}"] = tensor
        config |= {f"{component}.{k}": v for k, v in peft.config(component, weights).items()}
    return tensors, {"format": "pt", CONFIG: json.dumps(config, sort_keys=True)}


def entries(shapes: Mapping[str, Shape], metadata: Mapping[str, str]) -> list[Entry]:
    """What the keys of a diffusers file mean. Damaged names an unknown key."""
    configs = _configs(metadata)
    found = []
    for (component, module), parts in group(_split(key) for key in shapes).items():
        name = f"{component}.{module}"
        alpha = peft.alpha(configs.get(component, {}), name, module, peft.rank(parts, shapes))
        found.append(Entry(name, component, {canonical(component, module): 1}, parts, alpha))
    return found


PARTS = {
    r"\.lora_A(?:\.default)?\.weight": "lora_down.weight",
    r"\.lora_B(?:\.default)?\.weight": "lora_up.weight",
    r"(?:\.lora|\.lora_linear_layer|_lora)\.down\.weight": "lora_down.weight",
    r"(?:\.lora|\.lora_linear_layer|_lora)\.up\.weight": "lora_up.weight",
    r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?": "magnitude",
    r"(?:\.lora)?\.alpha": "alpha",
}
STARTS = {
    r"(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\.": "unet",
    r"(?:transformer_blocks|single_transformer_blocks)\.": "transformer",
    r"(?:text_model|encoder\.layers)\.": "text_encoder",
}
CLIP_OLD = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def is_part(key: str) -> bool:
    """Whether the end of a key is one of this layout's."""
    return any(re.fullmatch(rf".+{ending}", key) for ending in PARTS)


def _split(key: str) -> tuple[tuple[str, str], str, str]:
    """((component, module), part, key)."""
    for ending, part in PARTS.items():
        if match := re.fullmatch(rf"(.+?){ending}", key):
            return _locate(match[1], key), part, key
    raise Damaged(f"the LoRA key {key!r} has no meaning here")


def _locate(path: str, key: str) -> tuple[str, str]:
    component, _, module = path.partition(".")
    if component not in COMPONENTS:
        module = path
        starts = (c for start, c in STARTS.items() if re.match(start, f"{path}."))
        component = next(starts, "")
    if not component or not module:
        raise Damaged(f"the LoRA key {key!r} names no known component")
    module = module.replace(".processor.", ".")
    head, _, last = module.rpartition(".")
    if component in TEXT_ENCODERS and last in CLIP_OLD:
        module = f"{head}.{CLIP_OLD[last]}"
    return component, f"{module}.0" if last == "to_out" and component in DENOISERS else module


def _configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """{component: LoraConfig arguments}; empty where the file has none."""
    try:
        entries = json.loads(metadata.get(CONFIG, "{}")).items()
    except (ValueError, AttributeError, RecursionError):
        raise Damaged(f"the metadata {CONFIG} is not a JSON object") from None
    configs: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in entries:
        component, _, argument = key.partition(".")
        configs[component][argument] = value
    return configs
