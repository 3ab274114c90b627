"""Work folder to shipped folders: `mini/` in diffusers' layout, `clip/` in open_clip's; fp16
safetensors.

    python -m tools.mini.export --work DIR --setting cpu64 --out DIR/export

Everything below `--out`/mini and `--out`/clip is replaced.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from tools.mini import judge, tokenizer
from tools.mini.settings import SETTINGS, TEXT_WIDTH
from tools.mini.train_unet import build_scheduler, build_unet

LARGEST_FILE = "16MB"


def pipeline(work: Path, setting_name: str) -> StableDiffusionPipeline:
    """The averaged UNet of the last checkpoint with the rest of `mini`, fp32."""
    unet = build_unet(SETTINGS[setting_name])
    state = torch.load(work / f"unet-{setting_name}.pt", map_location="cpu", weights_only=True)
    unet.load_state_dict(state["ema"])
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae", torch_dtype=torch.float32),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_mini(work: Path, setting_name: str, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    whole = pipeline(work, setting_name).to(torch.float16)
    whole.save_pretrained(out, max_shard_size=LARGEST_FILE)
    # transformers writes a file of its own; the layout that CLIPTokenizer always read replaces it.
    shutil.rmtree(out / "tokenizer")
    shutil.copytree(work / "tokenizer", out / "tokenizer")


def export_clip(work: Path, out: Path) -> None:
    """EfficientNet-Lite0, the text tower under open_clip's names, and the two projections."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tensors = _image_tensors(work) | _text_tensors(work)
    save_file(
        {k: v.half().contiguous() for k, v in tensors.items()}, out / "open_clip_model.safetensors"
    )
    (out / "open_clip_config.json").write_text(json.dumps(clip_config(), indent=1))
    shutil.copytree(work / "tokenizer", out, dirs_exist_ok=True)


def clip_config() -> dict:
    return {
        "model_cfg": {
            "embed_dim": TEXT_WIDTH,
            "vision_cfg": {
                "timm_model_name": judge.NAME,
                "timm_model_pretrained": False,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "timm_proj_bias": True,
                "image_size": judge.SIZE,
            },
            "text_cfg": {
                "hf_tokenizer_name": "local",  # any name: it is read from this folder
                "context_length": tokenizer.CONTEXT,
                "vocab_size": tokenizer.VOCABULARY,
                "width": TEXT_WIDTH,
                "heads": 4,
                "layers": 4,
                "mlp_ratio": 2.0,
            },
        },
        "preprocess_cfg": {
            "mean": list(judge.MEAN),
            "std": list(judge.STD),
            "interpolation": "bicubic",
        },
    }


def _image_tensors(work: Path) -> dict[str, Tensor]:
    tower = load_file(work / "effnet_lite0.safetensors")
    kept = {f"visual.trunk.{k}": v for k, v in tower.items() if not k.startswith("classifier")}
    projections = load_file(work / "projections.safetensors")
    kept["visual.head.proj.weight"] = projections["image.weight"]
    kept["visual.head.proj.bias"] = projections["image.bias"]
    kept["logit_scale"] = projections["log_scale"]
    return kept


def _text_tensors(work: Path) -> dict[str, Tensor]:
    """CLIPTextModel's names to open_clip's: query, key and value in one matrix, projection as x @
    W.
    """
    state = {k.removeprefix("text_model."): v for k, v in _text_state(work).items()}
    named = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": load_file(work / "projections.safetensors")["text"].T,
    }
    layers = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("encoder.layers."))
    for layer in range(layers):
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for part in ("weight", "bias"):
            heads = [state[f"{old}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            named[f"{new}.attn.in_proj_{part}"] = torch.cat(heads)
            named[f"{new}.attn.out_proj.{part}"] = state[f"{old}.self_attn.out_proj.{part}"]
            named[f"{new}.ln_1.{part}"] = state[f"{old}.layer_norm1.{part}"]
            named[f"{new}.ln_2.{part}"] = state[f"{old}.layer_norm2.{part}"]
            named[f"{new}.mlp.c_fc.{part}"] = state[f"{old}.mlp.fc1.{part}"]
            named[f"{new}.mlp.c_proj.{part}"] = state[f"{old}.mlp.fc2.{part}"]
    return named


def _text_state(work: Path) -> dict[str, Tensor]:
    return load_file(work / "text_encoder" / "model.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("tools/mini/work"))
    parser.add_argument("--setting", choices=SETTINGS, default="cpu64")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clip", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    export_mini(options.work, options.setting, options.out / "mini")
    if options.clip:
        export_clip(options.work, options.out / "clip")
