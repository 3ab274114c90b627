"""Stable Diffusion 1.x and 2.x (Rombach et al., arXiv:2112.10752), and so the bundled `mini`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel

from dreamtune.bases import Base
from dreamtune.diffusion import Ddpm
from dreamtune.families import _tiny, _unet, _vae
from dreamtune.families._text import NO_WEIGHTS, TextStack, emphasised


class Family:
    """One CLIP text encoder, a UNet on VAE latents, epsilon or v-prediction."""

    name = lora_layout = "sd"
    pipelines: tuple[str, ...] = ("StableDiffusionPipeline",)
    parts: ClassVar = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
    }
    optional = ()
    sampler = "DDIM"
    denoiser_name = "unet"
    reads_chunks = True
    distilled = False
    guidance = None
    zeros_for_no_text = False
    lora_targets = _unet.LORA_TARGETS
    encode_image, decode_image = _vae.encode_image, _vae.decode_image
    override = _unet.override

    def __init__(
        self, base: str, unet: Any, vae: Any, text: list[TextStack], scheduler: DDIMScheduler
    ) -> None:
        self.base, self.denoiser, self.vae, self.text = base, unet, vae, text
        self.scheduler, self.clip_skip = scheduler, 1
        self.process = Ddpm.from_scheduler(scheduler)
        self.resolution, self.multiple = _unet.sizes(unet, vae)

    @property
    def spec(self) -> str:
        """Which of the released models this is like, for the metadata of adapters."""
        if self.base == "mini":
            return "mini"
        if self.denoiser.config.cross_attention_dim == 1024:  # OpenCLIP ViT-H, in 2.x only
            return "sd2-768-v" if self.process.prediction == "v_prediction" else "sd2-512"
        return "sd1"

    @classmethod
    def load(cls, base: Base, dtype: torch.dtype, device: torch.device | str) -> Family:
        """From the files of a base; frozen, in `dtype`, the VAE in fp32."""
        return cls(base.name, *_unet.read(base, cls.parts, dtype, device))

    @classmethod
    def tiny(cls) -> Family:
        """Random weights, 64 px."""
        unet = _tiny.seeded(
            1,
            lambda: UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 64),
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                layers_per_block=1,
                cross_attention_dim=32,
                attention_head_dim=4,
                norm_num_groups=8,
            ),
        )
        text = [_tiny.clip("text_encoder", 32, seed=2)]
        return cls("tiny:sd", unet, _tiny.autoencoder(4, seed=3), text, _tiny.ddim())

    def encode_text(
        self, tokens: dict[str, Tensor], weights: Mapping[str, Tensor] = NO_WEIGHTS
    ) -> dict[str, Tensor]:
        """Token ids {"text_encoder": (B, L)} to the last layer's states, {"text": (B, L, D)}."""
        stack = self.text[0]
        output = stack.encoder(tokens[stack.name], output_hidden_states=True)
        states = stack.encoder.final_layer_norm(output.hidden_states[-self.clip_skip])
        return {"text": emphasised(states, weights.get(stack.name))}

    def condition(self, text: dict[str, Tensor], meta: Tensor) -> dict[str, Tensor]:
        """What `predict` needs; this family takes no account of sizes and crops."""
        return text

    def predict(self, xt: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The UNet's output for noisy latents (B, C, h, w) at integer times (B,)."""
        # Of the weights: a layer norm on the text itself does not mix types on a CPU.
        hidden = cond["text"].to(self.denoiser.dtype)
        return self.denoiser(xt, t, encoder_hidden_states=hidden, return_dict=False)[0]

    def times(self, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        """What the pipeline tells a scheduler beside the number of steps: nothing."""
        return {}

    def pipeline(self) -> StableDiffusionPipeline:
        """A diffusers pipeline over the same modules."""
        stack = self.text[0]
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=stack.encoder,
            tokenizer=stack.tokenizer,
            unet=self.denoiser,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
