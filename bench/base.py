"""The base models that are measured, with random weights: speed does not depend on what they are,
so nothing has to be fetched.

`small` is Stable Diffusion 1.5 at 15 % of its widths: the UNet has 19.4 M parameters (1.5: 860 M);
encoding a picture takes 1.5 times the operations of the UNet's forward pass (1.5: 1.4 times).
`sd15` has the sizes of the released one, and 4.3 GB of files in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dreamtune.devices import quiet_libraries
from dreamtune.families import _tiny


@dataclass(frozen=True)
class Size:
    """What tells the bases apart, and how they are trained."""

    resolution: int  # px of the pictures
    batch: int
    unet_channels: tuple[int, int, int, int]
    unet_heads: int
    unet_groups: int
    vae_channels: tuple[int, int, int, int]
    vae_groups: int
    text_width: int
    text_layers: int
    text_heads: int
    words: int | None = None  # tokens that the text encoder knows; None: the tokenizer's


SIZES = {
    "small": Size(128, 4, (48, 96, 192, 192), 4, 16, (20, 40, 80, 80), 10, 128, 4, 4),
    "sd15": Size(
        256, 1, (320, 640, 1280, 1280), 8, 32, (128, 256, 512, 512), 32, 768, 12, 12, 49408
    ),
}


def build(folder: Path, size: Size) -> Path:
    """Write the base in the diffusers layout."""
    quiet_libraries()
    tokenizer = _tiny.tokenizer()
    text = CLIPTextConfig(
        vocab_size=size.words or len(tokenizer),
        hidden_size=size.text_width,
        intermediate_size=4 * size.text_width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    pipeline = StableDiffusionPipeline(
        vae=_tiny.seeded(1, lambda: _vae(size)),
        text_encoder=_tiny.seeded(2, lambda: CLIPTextModel(text)),
        tokenizer=tokenizer,
        unet=_tiny.seeded(3, lambda: _unet(size)),
        scheduler=_tiny.ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _unet(size: Size) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=size.resolution // 8,
        block_out_channels=size.unet_channels,
        norm_num_groups=size.unet_groups,
        cross_attention_dim=size.text_width,
        attention_head_dim=size.unet_heads,
    )


def _vae(size: Size) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=size.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=size.vae_groups,
        latent_channels=4,
        sample_size=size.resolution,
        scaling_factor=0.18215,
    )
