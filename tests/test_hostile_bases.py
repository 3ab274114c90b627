"""Bases that mean harm, or are broken: each is refused by name, before any work, and nothing of it
runs. Every pickle and every Python file here would leave a file `owned` behind.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamtune.artifacts import Artifact
from tests import forked, released

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
CODE = "import pathlib; pathlib.Path('owned').touch()\nclass Net: pass\n"


class Owned:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, ("import pathlib; pathlib.Path('owned').touch()",)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shards(base: Path, name: str) -> Path:
    """The text encoder's index now names `name` for every weight."""
    index = base / f"{TEXT}.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(load_file(base / TEXT), name)}))
    return (base / TEXT).rename(base / "elsewhere.safetensors")


def only_a_pickle(base: Path) -> None:
    (base / UNET).unlink()
    (base / UNET).with_suffix(".bin").write_bytes(pickle.dumps(Owned()))


def renamed_pickle(base: Path) -> None:
    (base / UNET).write_bytes(pickle.dumps(Owned()))


def renamed_torch_file(base: Path) -> None:
    torch.save({"state_dict": Owned()}, base / UNET)


def class_of_its_own(base: Path) -> None:
    (base / "net.py").write_text(CODE)
    (base / "unet/net.py").write_text(CODE)
    edit(base / "model_index.json", unet=["net", "Net"])


def any_class_of_a_library(base: Path) -> None:
    edit(base / "model_index.json", unet=["transformers", "GPT2Model"])


def pipeline_of_its_own(base: Path) -> None:
    (base / "pipeline.py").write_text(CODE)
    edit(base / "model_index.json", _class_name=["pipeline", "Net"])


def part_elsewhere(base: Path) -> None:
    index = json.loads((base / "model_index.json").read_text())
    index["../base/unet"] = index["unet"]
    (base / "model_index.json").write_text(json.dumps(index))


def remote_code(base: Path) -> None:
    edit(base / "text_encoder/config.json", auto_map={"AutoModel": "evil/model--net.Net"})


def remote_kernels(base: Path) -> None:
    edit(base / "text_encoder/config.json", _attn_implementation_internal="evil/kernels")


def shard_above(base: Path) -> None:
    shards(base, "../elsewhere.safetensors")


def shard_by_full_path(base: Path) -> None:
    shards(base, str(base / "elsewhere.safetensors"))


def shard_that_is_a_pipe(base: Path) -> None:
    shards(base, "pipe.safetensors")
    os.mkfifo(base / "text_encoder/pipe.safetensors")


def linked_shard(base: Path) -> None:
    outside = base.parent / "outside.safetensors"
    shards(base, "link.safetensors").rename(outside)
    (base / "text_encoder/link.safetensors").symlink_to(outside)


def linked_config(base: Path) -> None:
    (base / "unet/config.json").unlink()
    (base / "unet/config.json").symlink_to("/etc/hostname")


def missing_shard(base: Path) -> None:
    shards(base, "model-00001-of-00002.safetensors")


def lying_header(base: Path) -> None:
    data = (base / UNET).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(k for k in header if k != "__metadata__")
    header[name]["data_offsets"] = [0, 2**40]
    text = json.dumps(header).encode()
    (base / UNET).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def oversize_header(base: Path) -> None:
    data = (base / UNET).read_bytes()
    (base / UNET).write_bytes((2**40).to_bytes(8, "little") + data[8:])


def git_lfs_pointer(base: Path) -> None:
    (base / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def not_a_number(base: Path) -> None:
    edit(base / "vae/config.json", scaling_factor=float("nan"))


def endless_layers(base: Path) -> None:
    edit(base / "text_encoder/config.json", num_hidden_layers=10**9)


def endless_width(base: Path) -> None:
    edit(base / "unet/config.json", block_out_channels=[10**12, 64])


def endless_noise(base: Path) -> None:
    edit(base / "scheduler/scheduler_config.json", num_train_timesteps=10**12)


def nested_index(base: Path) -> None:
    (base / "model_index.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def inpainting(base: Path) -> None:
    tensors = load_file(base / UNET)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].repeat(1, 3, 1, 1)[:, :9].contiguous()
    save_file(tensors, base / UNET)
    edit(base / "unet/config.json", in_channels=9)


def wrong_family(base: Path) -> None:
    edit(base / "model_index.json", _class_name="StableDiffusionXLPipeline")


def no_family(base: Path) -> None:
    edit(base / "model_index.json", _class_name="KandinskyPipeline")


def quantised(base: Path) -> None:
    edit(base / "unet/config.json", quantization_config={"quant_method": "bitsandbytes"})


CASES: list[tuple[Callable[[Path], None], int, str]] = [
    (only_a_pickle, 13, "a pickle, which can run code"),
    (renamed_pickle, 13, "it is a pickle"),
    (renamed_torch_file, 13, "it is a pickle"),
    (class_of_its_own, 13, "net.Net"),
    (any_class_of_a_library, 13, "transformers.GPT2Model"),
    (pipeline_of_its_own, 13, "code of its own"),
    (part_elsewhere, 13, "'../base/unet'"),
    (remote_code, 13, "auto_map"),
    (remote_kernels, 13, "_attn_implementation_internal"),
    (shard_above, 13, "'../elsewhere.safetensors'"),
    (shard_by_full_path, 13, "beside its index"),
    (shard_that_is_a_pipe, 13, "not a regular file"),
    (linked_shard, 13, "outside of the base's folder"),
    (linked_config, 13, "outside of the base's folder"),
    (missing_shard, 12, "model-00001-of-00002.safetensors"),
    (lying_header, 12, "bytes"),
    (oversize_header, 12, "header"),
    (git_lfs_pointer, 12, "git lfs pull"),
    (not_a_number, 12, "scaling_factor"),
    (endless_layers, 12, "num_hidden_layers"),
    (endless_width, 12, "block_out_channels"),
    (endless_noise, 12, "num_train_timesteps"),
    (nested_index, 12, "model_index.json"),
    (inpainting, 2, "an inpainting model"),
    (wrong_family, 2, "text_encoder_2"),
    (no_family, 2, "KandinskyPipeline"),
    (quantised, 2, "quantised"),
]


def refused(args: list[str], base: Path, code: int, words: str, folder: Path) -> None:
    """One clear line, the right code, nothing done and nothing run."""
    assert forked.run([*args, "--base", str(base)], folder) == code
    lines = (folder / "stderr").read_text().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0], lines
    assert (folder / "stdout").read_text() == ""
    assert not [*folder.rglob("owned")]
    assert not [p for p in (folder / "artifacts").glob("*/*") if p.parent.name != "prep"]


@pytest.mark.parametrize(
    ("change", "code", "words"), CASES, ids=[case[0].__name__ for case in CASES]
)
def test_a_hostile_folder_is_refused_before_work(
    change: Callable[[Path], None],
    code: int,
    words: str,
    base: Path,
    make_prep: Callable[..., Artifact],
    tmp_path: Path,
) -> None:
    make_prep()
    change(base)
    refused(["train", "--steps", "1"], base, code, words, tmp_path)


def pickled_file(file: Path) -> Path:
    file.write_bytes(pickle.dumps(Owned()))
    return file


def inpainting_file(file: Path) -> Path:
    tensors = load_file(released.single_file("sd1", file))
    name = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[name] = tensors[name].repeat(1, 3, 1, 1)[:, :9].contiguous()
    save_file(tensors, file)
    return file


def lora_file(file: Path) -> Path:
    save_file({"lora_unet_mid_block.lora_down.weight": torch.ones(1, 1)}, file)
    return file


@pytest.mark.parametrize(
    ("make", "suffix", "code", "words"),
    [
        (pickled_file, ".ckpt", 13, "it is a pickle"),
        (pickled_file, ".safetensors", 13, "it is a pickle"),
        (inpainting_file, ".safetensors", 2, "an inpainting model"),
        (lora_file, ".safetensors", 2, "a LoRA"),
    ],
)
def test_a_hostile_file_is_refused_before_work(
    make: Callable[[Path], Path], suffix: str, code: int, words: str, tmp_path: Path
) -> None:
    file = make(tmp_path / f"base{suffix}")
    refused(["sample", "a dog", "--with", "none"], file, code, words, tmp_path)
