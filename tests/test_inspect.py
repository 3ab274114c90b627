"""inspect: what a file is, in words and JSON, from its header, and what is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamtune.cli import run
from dreamtune.formats import embeddings, kohya, modelspec, peft
from dreamtune.fsops import write_safetensors
from tests.adapters import BLOCKS, LAYOUT, adapter

SPECS = {"sd1": "sd1", "sdxl": "sdxl", "sd3": "sd3-medium", "flux": "flux-dev"}


def saved(path: Path, family: str, **changes: Any) -> Path:
    """A file as training saves it."""
    mine = adapter(family, 1.5, every=3, **changes)
    tensors, marks = kohya.dump(mine, LAYOUT[family], BLOCKS[family])
    body, base = modelspec.body_sha256(tensors), modelspec.BASES[SPECS[family]]
    said = {"title": "rex", "resolution": (512, 512), "trigger_phrase": "sks dog"}
    metadata = {
        **marks,
        **modelspec.modelspec(base, "lora", body, **said),  # type: ignore[arg-type]
        **modelspec.kohya_keys(base, mine, body, name="rex", max_train_steps=300),
    }
    write_safetensors(path, tensors, metadata)
    return path


def inspect(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, Any]:
    code = run(["inspect", "--json", *map(str, args)])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_lora(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (said,) = inspect(capsys, saved(tmp_path / "rex.safetensors", family))
    assert code == 0 and said["warnings"] == [] and said["problem"] is None
    assert (said["what"], said["layout"], said["base"]) == ("LoRA", "kohya", family)
    assert said["trigger"] == "sks dog" and said["steps"] == "300"
    assert said["modules"].keys() >= {"transformer", "text_encoder"}
    assert len(said["hash"]["short"]) == 12 and said["dtype"] == "F32"


def test_ranks_and_alphas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {}
    for i, (rank, alpha) in enumerate([(4, 2.0), (4, 2.0), (8, 2.0)]):
        name = f"lora_unet_down_blocks_{i}_attentions_0_transformer_blocks_0_attn2_to_k"
        down, up = torch.ones(rank, 768), torch.ones(320, rank)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors |= {f"{name}.alpha": torch.tensor(alpha, dtype=torch.bfloat16)}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"ss_network_dim": "4"})
    code, (said,) = inspect(capsys, tmp_path / "x.safetensors")
    assert code == 0 and said["for"] == "Stable Diffusion 1.x"
    assert said["rank"] == {"4": 2, "8": 1}
    assert said["alpha"] == 2.0 and said["scale"] == {"0.25": 1, "0.5": 2}


def test_dora_and_peft_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = adapter("sdxl", 1.0, every=7, dora=True)
    for component, updates in mine.items():
        tensors, config = peft.dump(component, updates)
        (tmp_path / component).mkdir()
        write_safetensors(tmp_path / component / peft.FILE, tensors)
        (tmp_path / component / peft.CONFIG).write_text(json.dumps(config))
    code, (said,) = inspect(capsys, tmp_path)
    assert code == 0 and said["what"] == "DoRA" and said["layout"] == "peft"
    assert said["modules"].keys() == mine.keys()


def test_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = {"text_encoder": torch.ones(2, 768), "text_encoder_2": torch.ones(2, 1280)}
    write_safetensors(tmp_path / "rex.safetensors", embeddings.dump(vectors))
    _, (said,) = inspect(capsys, tmp_path / "rex.safetensors")
    assert said["what"] == "embedding" and said["base"] == "sdxl"
    assert said["words"] == {"rex": {"text_encoder": [2, 768], "text_encoder_2": [2, 1280]}}


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("down_blocks.0.resnets.0.conv1.weight", "one part of a folder"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
    ],
)
def test_other_files(
    key: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_safetensors(tmp_path / "x.safetensors", {key: torch.ones(2, 2, 3, 3)})
    code, (said,) = inspect(capsys, tmp_path / "x.safetensors")
    assert code == 0 and what in said["what"]


def test_metadata_that_lies_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved(tmp_path / "x.safetensors", "flux")
    from safetensors.torch import load_file

    lies = {"modelspec.architecture": "stable-diffusion-v1/lora", "ss_network_dim": "99"}
    tensors = load_file(file)
    write_safetensors(file, tensors, lies)
    code, (said,) = inspect(capsys, file)
    assert code == 0 and said["base"] == "flux"
    assert any("says Stable Diffusion 1.x, its shapes say FLUX" in w for w in said["warnings"])


@pytest.mark.parametrize(("alpha", "lies"), [("2", False), ("2.0", False), ("8", True)])
def test_an_alpha_that_lies_is_said(
    alpha: str, lies: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{name}.lora_down.weight": torch.ones(4, 768), f"{name}.alpha": torch.tensor(2.0)}
    tensors[f"{name}.lora_up.weight"] = torch.ones(1280, 4)
    said_of_it = {"ss_network_dim": "4", "ss_network_alpha": alpha}
    write_safetensors(tmp_path / "x.safetensors", tensors, said_of_it)
    code, (said,) = inspect(capsys, tmp_path / "x.safetensors")
    assert code == 0 and said["alpha"] == 2.0
    warning = "its metadata says alpha 8 of rank 4, its tensors have a scale of 0.5"
    assert said["warnings"] == [warning] * lies


def test_deep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = saved(tmp_path / "good.safetensors", "sd1")
    code, (said,) = inspect(capsys, "--deep", good)
    assert code == 0 and said["hash"]["tensors"] == said["hash"]["tensors"].lower()
    assert said["zero tensors"] == 0 and said["norm"]["lora_unet_down"] > 0

    data = bytearray(good.read_bytes())
    data[-6] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(data)
    code, (said,) = inspect(capsys, "--deep", tmp_path / "flipped.safetensors")
    assert code == 12 and "not as it was saved" in said["problem"]
    assert inspect(capsys, tmp_path / "flipped.safetensors")[0] == 0, "its header is sound"

    bad = {"<rex>": torch.tensor([[1.0, float("nan")]])}
    write_safetensors(tmp_path / "nan.safetensors", bad)
    code, (said,) = inspect(capsys, "--deep", tmp_path / "nan.safetensors")
    assert code == 14 and "<rex>" in said["problem"]


def test_one_bad_file_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({}, tmp_path / "old.pt")
    good = saved(tmp_path / "good.safetensors", "sd1")
    code, said = inspect(capsys, tmp_path / "old.pt", tmp_path / "none.safetensors", good)
    assert code == 13 and "pickle" in said[0]["problem"] and "no such file" in said[1]["problem"]
    assert said[2]["what"] == "LoRA"
    assert run(["inspect", str(good), str(tmp_path / "none.safetensors")]) == 10
    shown = capsys.readouterr()
    assert "trigger" in shown.out and "none.safetensors" in shown.err


def test_without_torch(tmp_path: Path) -> None:
    file = saved(tmp_path / "rex.safetensors", "sd1")
    code = f"""import sys
from dreamtune.cli import run
assert run(["inspect", {str(file)!r}, "--json"]) == 0
assert not {{"torch", "numpy", "safetensors", "rich"}} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)
