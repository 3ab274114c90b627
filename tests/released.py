"""Small bases made as the released ones are: heads, groups and scales are theirs, only widths
and depths are not, so that a single file of one says what it is as the real ones do.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from dreamtune.bases import vocabulary
from dreamtune.families._tiny import seeded
from dreamtune.formats import checkpoint, ldm
from dreamtune.formats.checkpoint import ONE, TWO, XL

WORDS = 600
NAMES = {"sd1": ONE, "sd2": TWO, "sdxl": XL}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@functools.cache
def pipeline(name: str) -> Any:
    """A diffusers pipeline, random and the same each time."""
    one, xl = name == "sd1", name == "sdxl"
    encoders = [_text(1, open_clip=not (one or xl), pooled=False)]
    encoders += [_text(2, open_clip=True, pooled=True)] if xl else []
    width = sum(encoder.config.hidden_size for encoder in encoders)
    parts = {
        "vae": seeded(3, lambda: _vae(0.13025 if xl else 0.18215, 1024 if xl else 768)),
        "unet": seeded(4, lambda: _unet(one, xl, width)),
        "scheduler": DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
            prediction_type="v_prediction" if name == "sd2" else "epsilon",
        ),
        "text_encoder": encoders[0],
        "tokenizer": _tokenizer("<|endoftext|>" if one or xl else "!"),
    }  # fmt: skip
    if xl:
        two = {"text_encoder_2": encoders[1], "tokenizer_2": _tokenizer("!")}
        return StableDiffusionXLPipeline(**parts, **two, add_watermarker=False)
    none = {"safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(**parts, **none, requires_safety_checker=False)


def single_file(name: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The same base as one file, in Stability's names."""
    kind, source = NAMES[name], pipeline(name)
    unet = source.unet.state_dict()
    blocks = ldm.Blocks.of(source.unet.config)
    names = ldm.unet_names(blocks)
    found = {checkpoint.UNET + (ldm.renamed(k, names) or k): v for k, v in unet.items()}
    vae = checkpoint.vae_names(len(source.vae.config.block_out_channels), 1)
    for key, value in source.vae.state_dict().items():
        linear = ".attentions." in key and value.ndim == 2
        name_there = ldm.renamed(key, vae) or key
        found[checkpoint.VAE + name_there] = value[..., None, None] if linear else value
    for text in kind.text:
        state = getattr(source, text.part).state_dict()
        state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
        state = _open_clip(state, text.unused) if text.open_clip else state
        found |= {text.prefix + k: v for k, v in state.items()}
    found["model_ema.decay"] = torch.tensor(0.999)
    found["betas"] = torch.zeros(1000)
    save_file({k: v.to(dtype).contiguous().clone() for k, v in found.items()}, path)
    return path


def _open_clip(state: dict[str, torch.Tensor], unused: int) -> dict[str, torch.Tensor]:
    """A text encoder in OpenCLIP's names, with layers that the base does not use at its end."""
    found: dict[str, torch.Tensor] = {"logit_scale": torch.tensor(1.0)}
    back = {new: old for old, new in checkpoint.OPEN_CLIP.items()}
    layer = {new: old for old, new in checkpoint.OPEN_CLIP_LAYER.items()}
    for key, value in state.items():
        bare = key.removeprefix("text_model.")
        if bare in back:
            found[back[bare]] = value
        elif bare.endswith("text_projection.weight"):
            found["text_projection"] = value.T
        elif m := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", bare):
            block = f"transformer.resblocks.{m[1]}"
            if m[2].endswith(("q_proj", "k_proj", "v_proj")):
                same = [state[key.replace(m[2], f"self_attn.{c}_proj")] for c in "qkv"]
                found[f"{block}.attn.in_proj_{m[3]}"] = torch.cat(same)
            else:
                found[f"{block}.{layer[m[2]]}.{m[3]}"] = value
    last = max(int(k.split(".")[2]) for k in found if "resblocks" in k)
    for i in range(last + 1, last + 1 + unused):
        same = {k: v for k, v in found.items() if f"resblocks.{last}." in k}
        found |= {k.replace(f".{last}.", f".{i}."): v + 1 for k, v in same.items()}
    return found


def _tokenizer(pad: str) -> CLIPTokenizer:
    words, merges = vocabulary.of_size(WORDS)
    return CLIPTokenizer(vocab=words, merges=merges, model_max_length=77, pad_token=pad)


def _text(seed: int, open_clip: bool, pooled: bool) -> Any:
    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=64 * seed,
        intermediate_size=96,
        projection_dim=48,
        num_hidden_layers=2,
        num_attention_heads=seed,
        hidden_act="gelu" if open_clip else "quick_gelu",
        bos_token_id=WORDS - 2,
        eos_token_id=WORDS - 1,
    )
    kind = CLIPTextModelWithProjection if pooled else CLIPTextModel
    return seeded(seed, lambda: kind(config))


def _vae(scale: float, size: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=size,
        scaling_factor=scale,
    )


def _unet(one: bool, xl: bool, width: int) -> UNet2DConditionModel:
    down = ("CrossAttnDownBlock2D", "DownBlock2D")[:: -1 if xl else 1]
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 48,
        "transformer_layers_per_block": (1, 2),
    }
    return UNet2DConditionModel(
        sample_size=128 if xl else 64 if one else 96,
        block_out_channels=(64, 128),
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        cross_attention_dim=width,
        attention_head_dim=8 if one else (1, 2),
        use_linear_projection=not one,
        layers_per_block=1 if xl else 2,
        **(added if xl else {}),
    )
