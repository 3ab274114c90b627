"""The base model that is measured: Stable Diffusion 1.5 at 15 % of its widths, random weights.

Speed does not depend on what the weights are, so nothing has to be fetched. The UNet has 19.4 M
parameters (1.5: 860 M); encoding a picture takes 1.5 times the operations of the UNet's forward
pass (1.5: 1.4 times).
"""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dreamtune.devices import quiet_libraries
from dreamtune.families import _tiny

RESOLUTION = 128  # px
TEXT_WIDTH = 128


def build(folder: Path) -> Path:
    """Write the base in the diffusers layout."""
    quiet_libraries()
    tokenizer = _tiny.tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    pipeline = StableDiffusionPipeline(
        vae=_tiny.seeded(1, _vae),
        text_encoder=_tiny.seeded(2, lambda: CLIPTextModel(text)),
        tokenizer=tokenizer,
        unet=_tiny.seeded(3, _unet),
        scheduler=_tiny.ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 8,
        block_out_channels=(48, 96, 192, 192),
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(20, 40, 80, 80),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=10,
        latent_channels=4,
        sample_size=RESOLUTION,
        scaling_factor=0.18215,
    )
