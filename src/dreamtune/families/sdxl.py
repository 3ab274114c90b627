"""Stable Diffusion XL (Podell et al., arXiv:2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from dreamtune.bases import Base
from dreamtune.diffusion import Ddpm
from dreamtune.families import _tiny, _unet
from dreamtune.families._text import NO_WEIGHTS, TextStack, emphasised, read_stacks


class Family:
    """Two CLIP text encoders, a pooled one, and micro-conditioning on sizes and crops."""

    name = lora_layout = "sdxl"
    spec = "sdxl"
    pipelines: tuple[str, ...] = ("StableDiffusionXLPipeline",)
    parts: ClassVar = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    optional = ()
    sampler = "DDIM"
    denoiser_name = "unet"
    reads_chunks = True
    distilled = False
    lora_targets = _unet.LORA_TARGETS

    def __init__(
        self, base: str, unet: Any, vae: Any, text: list[TextStack], scheduler: DDIMScheduler
    ) -> None:
        self.base, self.denoiser, self.vae, self.text = base, unet, vae, text
        self.scheduler = scheduler
        self.process = Ddpm.from_scheduler(scheduler)
        factor = _unet.spatial_factor(vae)
        self.resolution = int(unet.config.sample_size) * factor
        self.multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)

    @classmethod
    def load(cls, base: Base, dtype: torch.dtype, device: torch.device | str) -> Family:
        """From the files of a base; frozen, in `dtype`, the VAE in fp32."""
        parts = _unet.parts(base, cls.parts, dtype, device)
        text = read_stacks(base, {n: m for n, m in parts.items() if n.startswith("text")})
        scheduler = _unet.scheduler(base)
        return cls(base.name, parts["unet"], parts["vae"], text, scheduler)

    @classmethod
    def tiny(cls) -> Family:
        """Random weights, 64 px."""
        text = [
            _tiny.clip("text_encoder", 32, seed=2),
            _tiny.clip("text_encoder_2", 16, seed=3, projection=True),
        ]
        unet = _tiny.seeded(
            1,
            lambda: UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 64),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                cross_attention_dim=48,
                attention_head_dim=(2, 4),
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 16,
                norm_num_groups=8,
            ),
        )
        return cls("tiny:sdxl", unet, _tiny.autoencoder(4, seed=4), text, _tiny.ddim())

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior (mean, std) of pixels (B, 3, H, W) in [-1, 1], scaled; each (B, C, h, w)."""
        return _unet.encode_image(self.vae, pixels)

    def decode_image(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1], of scaled latents (B, C, h, w)."""
        return _unet.decode_image(self.vae, latents)

    def encode_text(
        self, tokens: dict[str, Tensor], weights: Mapping[str, Tensor] = NO_WEIGHTS
    ) -> dict[str, Tensor]:
        """Token ids by stack, (B, L) each, to {"text": (B, L, D1 + D2), "pooled": (B, D2)}."""
        states = []
        for stack in self.text:
            output = stack.encoder(tokens[stack.name], output_hidden_states=True)
            states.append(emphasised(output.hidden_states[-2], weights.get(stack.name)))
        return {"text": torch.cat(states, dim=-1), "pooled": output[0]}

    def condition(self, text: dict[str, Tensor], meta: Tensor) -> dict[str, Tensor]:
        """Adds the time ids: meta (B, 6) is original size, crop corner, target size, h before w."""
        return {**text, "time_ids": meta}

    def predict(self, xt: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The UNet's output for noisy latents (B, C, h, w) at integer times (B,)."""
        added = {"text_embeds": cond["pooled"].to(xt.dtype), "time_ids": cond["time_ids"]}
        return self.denoiser(
            xt,
            t,
            encoder_hidden_states=cond["text"].to(xt.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    def times(self, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        """What the pipeline tells a scheduler beside the number of steps: nothing."""
        return {}

    def pipeline(self) -> StableDiffusionXLPipeline:
        """A diffusers pipeline over the same modules."""
        first, second = self.text
        return StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=first.encoder,
            text_encoder_2=second.encoder,
            tokenizer=first.tokenizer,
            tokenizer_2=second.tokenizer,
            unet=self.denoiser,
            scheduler=self.scheduler,
            add_watermarker=False,
        )
