"""What a file says of itself: Stability's ModelSpec 1.0.1, and the ss_ keys that UIs look for.

    https://github.com/Stability-AI/ModelSpec; sd-scripts library/train_util.py at 48d368fa

All values are strings. A1111 decides by `ss_base_model_version` and `ss_v2` what base a LoRA is
for; SwarmUI by `modelspec.architecture`, and it parses `modelspec.resolution` as two integers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamtune.formats.lora import Adapter, LoraWeights, Update
from dreamtune.fsops import dump_safetensors

if TYPE_CHECKING:
    from torch import Tensor

SGM = "https://github.com/Stability-AI/generative-models"
LYCORIS = "lycoris.kohya"  # loads what networks.lora does not: DoRA, LoHa, LoKr, differences
BFL = "https://github.com/black-forest-labs/flux"


@dataclass(frozen=True)
class Base:
    """What metadata calls a base model."""

    architecture: str  # ModelSpec's id; for SD 3 as SwarmUI knows it
    version: str  # ss_base_model_version, as sd-scripts writes it
    prediction: str = ""  # "epsilon" or "v"; ModelSpec has no word for flow matching
    implementation: str = "diffusers"  # the code whose module names a LoRA carries
    network: str = "networks.lora"  # the module of sd-scripts that would load it


BASES = {
    "sd1": Base("stable-diffusion-v1", "sd_v1", "epsilon"),
    "sd2-512": Base("stable-diffusion-v2-512", "sd_v2", "epsilon"),
    "sd2-768-v": Base("stable-diffusion-v2-768-v", "sd_v2_v", "v"),
    "sdxl": Base("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "epsilon", SGM),
    "sdxl-v": Base("stable-diffusion-xl-v1-base", "sdxl_base_v1-0", "v", SGM),
    "sd3-medium": Base(
        "stable-diffusion-v3-medium", "medium", implementation=SGM, network="networks.lora_sd3"
    ),
    "sd35-medium": Base(
        "stable-diffusion-v3.5-medium", "5-medium", implementation=SGM, network="networks.lora_sd3"
    ),
    "sd35-large": Base(
        "stable-diffusion-v3.5-large", "5-large", implementation=SGM, network="networks.lora_sd3"
    ),
    "flux-dev": Base("flux-1-dev", "flux1", implementation=BFL, network="networks.lora_flux"),
    "flux-schnell": Base(
        "flux-1-schnell", "flux1", implementation=BFL, network="networks.lora_flux"
    ),
    "mini": Base("dreamtune-mini", "dreamtune_mini", "v"),
}


def body_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the bytes after the header, which the metadata in the header must name."""
    data = dump_safetensors(tensors)
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def modelspec(
    base: Base,
    adapter: str,
    body: str,
    *,
    title: str,
    resolution: tuple[int, int] | None = None,
    **optional: str,
) -> dict[str, str]:
    """ModelSpec's keys. `adapter`: "lora" or "textual-inversion", or "" for a whole model in one
    file, which is in the names of Stability's code too; `body`: body_sha256.

    `optional`: description, author, date (ISO 8601), trigger_phrase, tags, license, usage_hint and
    the others of the specification; empty ones are left out.
    """
    # sd-scripts names Stability's code for every embedding, since it is the code's own format.
    implementation = base.implementation if adapter == "lora" else SGM
    keys = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{base.architecture}/{adapter}".rstrip("/"),
        "implementation": implementation,
        "title": title,
        "resolution": f"{resolution[0]}x{resolution[1]}" if resolution else "",
        "hash_sha256": f"0x{body}",
        "prediction_type": base.prediction,
        **optional,
    }
    return {f"modelspec.{key}": value for key, value in keys.items() if value}


def kohya_keys(
    base: Base, adapter: Adapter, body: str, *, name: str, **training: object
) -> dict[str, str]:
    """The keys that sd-scripts guarantees for a LoRA, name, hash, and `training` as ss_ keys.

    `name` is what A1111 calls the file; `training`: steps, seed, learning_rate, num_train_images …
    """
    weights = [w for modules in adapter.values() for w in modules.values()]
    plain = all(isinstance(w, LoraWeights) and w.magnitude is None for w in weights)
    return {
        "ss_v2": str(base.architecture.startswith("stable-diffusion-v2")),
        "ss_base_model_version": base.version,
        "ss_network_module": base.network if plain else LYCORIS,
        "ss_network_dim": _common({str(w.rank) for w in weights}),
        "ss_network_alpha": _common({str(w.alpha) for w in weights}),
        "ss_network_args": json.dumps(_arguments(weights)),
        "ss_output_name": name,
        "sshs_model_hash": body,
        **{f"ss_{key}": str(value) for key, value in training.items()},
    }


def _arguments(weights: Sequence[Update]) -> dict[str, str]:
    """What sd-scripts would be told: sizes on convolutions, and DoRA in LyCORIS' words."""
    convolutions = [w for w in weights if len(w.shape) == 4 and w.shape[2:] != (1, 1)]
    found = {}
    if convolutions:
        found["conv_dim"] = _common({str(w.rank) for w in convolutions})
        found["conv_alpha"] = _common({str(w.alpha) for w in convolutions})
    if any(w.magnitude is not None for w in weights):
        found |= {"dora_wd": "True", "wd_on_output": "True"}
    return found


def sshs_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The two hashes that sd-scripts writes for sd-webui-additional-networks.

    The legacy one is of 64 KiB at 1 MiB into a file that has the ss_ metadata only, as there.
    """
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    legacy = hashlib.sha256(dump_safetensors(tensors, kept)[0x100000:0x110000]).hexdigest()
    return {"sshs_model_hash": body_sha256(tensors), "sshs_legacy_hash": legacy[:8]}


def _common(values: set[str]) -> str:
    """The one value, or sd-scripts' word for several."""
    return values.pop() if len(values) == 1 else "Dynamic"
