"""Configs of a single-file checkpoint's parts, in diffusers' and transformers' terms, from shapes.

What shapes cannot tell is what was released: widths of heads, groups of norms, activations, the
scale of latents, the schedule of the noise (CompVis/stable-diffusion configs/stable-diffusion/
v1-inference.yaml, Stability-AI/stablediffusion configs/stable-diffusion/v2-inference-v.yaml,
Stability-AI/generative-models configs/inference/sd_xl_base.yaml).
"""

from __future__ import annotations

from typing import Any

from dreamtune.errors import Damaged
from dreamtune.formats.checkpoint import (
    FIRST,
    TWO,
    UNET,
    VAE,
    XL,
    Kind,
    Shapes,
    Text,
    blocks_of,
    depth,
    levels_of,
    used_layers,
    vae_depth,
)

Config = dict[str, Any]
GROUPS = 32
HEAD = 64  # width of an attention head, except in the UNet of 1.x, which has 8 heads
SIZES = {XL: 1024, TWO: 768}  # px; 1.x has 512
XL_SCALE, SCALE = 0.13025, 0.18215  # of latents


def configs(kind: Kind, shapes: Shapes) -> dict[str, Config]:
    """Config of every part. Damaged when a tensor that decides about one is missing."""
    try:
        found = {text.part: _text(text, shapes) for text in kind.text}
        vae = _vae(kind, shapes)
        unet = _unet(kind, shapes)
    except (KeyError, IndexError, ValueError) as e:
        raise Damaged("it is not complete", why=f"{e.args[0]} is missing or misshapen") from None
    unet["sample_size"] = vae["sample_size"] // 2 ** (len(vae["block_out_channels"]) - 1)
    return {**found, "unet": unet, "vae": vae, "scheduler": _noise(kind, shapes)}


def _unet(kind: Kind, shapes: Shapes) -> Config:
    blocks, levels = blocks_of(shapes), levels_of(shapes)
    widths = [shapes[f"{UNET}input_blocks.{level[0]}.0.in_layers.2.weight"][0] for level in levels]
    depths = [depth(shapes, f"input_blocks.{level[0]}.1") for level in levels]
    middle = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    # The middle block takes the last level's depth, also where that level has no attention itself.
    layers = [*blocks.layers]
    depths = [d or 1 for d in depths[:-1]] + [depths[-1] or depth(shapes, "middle_block.1")]
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in blocks.attention]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(blocks.attention)]
    config = {
        "in_channels": shapes[FIRST][1],
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": layers[0] if len({*layers}) == 1 else layers,
        "down_block_types": down,
        "up_block_types": up,
        "transformer_layers_per_block": depths,
        "cross_attention_dim": shapes[middle][1],
        "attention_head_dim": [w // HEAD for w in widths] if kind in (TWO, XL) else 8,
        "use_linear_projection": len(shapes[f"{UNET}middle_block.1.proj_in.weight"]) == 2,
        "upcast_attention": kind == TWO,
        "norm_num_groups": GROUPS,
    }
    return config | (_added(shapes) if kind == XL else {})


def _added(shapes: Shapes) -> Config:
    """XL's conditioning on pooled text and six sizes."""
    width = shapes[f"{UNET}label_emb.0.0.weight"][1]
    pooled = shapes[f"{XL.text[1].prefix}text_projection"][1]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (width - pooled) // 6,
        "projection_class_embeddings_input_dim": width,
    }


def _vae(kind: Kind, shapes: Shapes) -> Config:
    levels, layers = vae_depth(shapes)
    widths = [shapes[f"{VAE}encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": layers,
        "latent_channels": shapes[f"{VAE}decoder.conv_in.weight"][1],
        "mid_block_add_attention": f"{VAE}encoder.mid.attn_1.q.weight" in shapes,
        "norm_num_groups": GROUPS,
        "sample_size": SIZES.get(kind, 512),
        "scaling_factor": XL_SCALE if kind == XL else SCALE,
    }


def _text(text: Text, shapes: Shapes) -> Config:
    """A CLIP text encoder; OpenCLIP's differ in their activation."""
    words, places, hidden = _widths(text, shapes)
    config = {
        "vocab_size": words,
        "max_position_embeddings": places,
        "hidden_size": hidden,
        "num_attention_heads": hidden // HEAD,
        "num_hidden_layers": used_layers(text, shapes),
        "hidden_act": "gelu" if text.open_clip else "quick_gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
    }
    prefix = f"{text.prefix}transformer.resblocks.0.mlp.c_fc.weight"
    if not text.open_clip:
        prefix = f"{text.prefix}{_inner(text, shapes)}encoder.layers.0.mlp.fc1.weight"
    config["intermediate_size"] = shapes[prefix][0]
    projection = shapes.get(f"{text.prefix}text_projection")
    return config | ({"projection_dim": projection[1]} if projection else {})


def _widths(text: Text, shapes: Shapes) -> tuple[int, int, int]:
    """Tokens of the vocabulary, places in a text, width."""
    inner = "" if text.open_clip else f"{_inner(text, shapes)}embeddings."
    token = shapes[f"{text.prefix}{inner}token_embedding.weight"]
    place = "positional_embedding" if text.open_clip else f"{inner}position_embedding.weight"
    return token[0], shapes[f"{text.prefix}{place}"][0], token[1]


def _inner(text: Text, shapes: Shapes) -> str:
    """Files of the first days lack `text_model`."""
    key = f"{text.prefix}text_model.embeddings.token_embedding.weight"
    return "text_model." if key in shapes else ""


def _noise(kind: Kind, shapes: Shapes) -> Config:
    """The schedule of all three. 2.x is taken for the 768 px model, which predicts v: no shape
    tells it from the 512 px one. Fine-tunes with v or zero terminal SNR say so by empty tensors.
    """
    v = kind == TWO or "v_pred" in shapes
    return {
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction" if v else "epsilon",
        "rescale_betas_zero_snr": "ztsnr" in shapes,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
