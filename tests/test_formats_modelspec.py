"""Metadata: every key a string, hashes of the very bytes, and what the UIs conclude from it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from dreamtune.formats import kohya
from dreamtune.formats.header import body_sha256, read_header
from dreamtune.formats.lora import Adapter, LoraWeights
from dreamtune.formats.modelspec import BASES, kohya_keys, modelspec
from dreamtune.formats.modelspec import body_sha256 as body_of
from dreamtune.fsops import write_safetensors

ADAPTER: Adapter = {
    "unet": {
        f"mid_block.attentions.0.{name}": LoraWeights(torch.randn(4, 6), torch.randn(5, 4), 2.0)
        for name in ("proj_in", "proj_out")
    }
}
MUST = {"sai_model_spec", "architecture", "implementation", "title", "resolution", "hash_sha256"}
MINIMUM = {"v2", "base_model_version", "network_module", "network_dim", "network_alpha"}


def metadata(name: str, body: str = "0" * 64) -> dict[str, str]:
    spec = modelspec(BASES[name], "lora", body, title="Rex", resolution=(512, 768))
    return spec | kohya_keys(BASES[name], ADAPTER, body, name="rex", steps=300, seed=1)


@pytest.mark.parametrize("name", BASES)
def test_all_keys_are_there_and_strings(name: str) -> None:
    keys = metadata(name)
    assert {f"modelspec.{key}" for key in MUST} <= keys.keys()
    assert {f"ss_{key}" for key in MINIMUM | {"network_args", "output_name"}} <= keys.keys()
    assert all(isinstance(value, str) and value for value in keys.values())
    assert re.fullmatch(r"\d+x\d+", keys["modelspec.resolution"])
    assert keys["modelspec.architecture"].endswith("/lora")
    assert json.loads(keys["ss_network_args"]) == {}
    assert (keys["ss_network_dim"], keys["ss_network_alpha"]) == ("4", "2.0")
    assert (keys["ss_steps"], keys["ss_seed"]) == ("300", "1")


def test_hashes_are_of_the_bytes_after_the_header(tmp_path: Path) -> None:
    tensors, _ = kohya.dump(ADAPTER, "sd")
    path = tmp_path / "rex.safetensors"
    write_safetensors(path, tensors, metadata("sd1", body_of(tensors)))
    header = read_header(path)
    want = hashlib.sha256(path.read_bytes()[header.body_offset :]).hexdigest()
    assert header.metadata["modelspec.hash_sha256"] == f"0x{want}"
    assert header.metadata["sshs_model_hash"] == want == body_sha256(path)


def a1111_version(keys: dict[str, str]) -> str:
    """extensions-builtin/Lora/network.py: NetworkOnDisk.detect_version."""
    if keys.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    if keys.get("ss_v2") == "True":
        return "SD2"
    return "SD1" if keys else "Unknown"


@pytest.mark.parametrize(
    ("name", "version"),
    [("sd1", "SD1"), ("sd2-512", "SD2"), ("sd2-768-v", "SD2"), ("sdxl", "SDXL")],
)
def test_a1111_sorts_it_right(name: str, version: str) -> None:
    assert a1111_version(metadata(name)) == version


def test_swarmui_knows_the_architectures() -> None:
    """IDs registered in T2IModelClassSorter.cs (2026-08); it has none for a LoRA of 2.x at 512."""
    known = {
        "stable-diffusion-v1/lora",
        "stable-diffusion-v2-768-v/lora",
        "stable-diffusion-xl-v1-base/lora",
        "stable-diffusion-v3-medium/lora",
        "stable-diffusion-v3.5-medium/lora",
        "stable-diffusion-v3.5-large/lora",
        "flux-1-dev/lora",  # these two by its Remaps
        "flux-1-schnell/lora",
    }
    ours = {name: metadata(name)["modelspec.architecture"] for name in BASES}
    assert {name for name, arch in ours.items() if arch not in known} == {"sd2-512", "mini"}


def test_different_ranks_and_an_embedding() -> None:
    mixed: Adapter = {"unet": dict(ADAPTER["unet"])}
    mixed["unet"]["conv_in"] = LoraWeights(torch.ones(2, 4, 3, 3), torch.ones(8, 2, 1, 1), 2.0)
    keys = kohya_keys(BASES["sd1"], mixed, "0", name="x")
    assert (keys["ss_network_dim"], keys["ss_network_alpha"]) == ("Dynamic", "2.0")
    keys = modelspec(
        BASES["sd1"],
        "textual-inversion",
        "0",
        title="Rex",
        resolution=(512, 512),
        trigger_phrase="<rex>",
        description="",
    )
    assert keys["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert keys["modelspec.trigger_phrase"] == "<rex>"
    assert "modelspec.description" not in keys
