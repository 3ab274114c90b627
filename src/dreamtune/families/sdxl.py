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
from dreamtune.families import _tiny, _unet, _vae
from dreamtune.families._text import NO_WEIGHTS, TextStack, emphasised


class Family:
    """Two CLIP text encoders, a pooled one, and micro-conditioning on sizes and crops."""

    name = lora_layout = "sdxl"
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
    guidance = None
    lora_targets = _unet.LORA_TARGETS
    encode_image, decode_image = _vae.encode_image, _vae.decode_image
    override = _unet.override

    def __init__(
        self,
        base: str,
        unet: Any,
        vae: Any,
        text: list[TextStack],
        scheduler: DDIMScheduler,
        zeros_for_no_text: bool = True,
    ) -> None:
        self.base, self.denoiser, self.vae, self.text = base, unet, vae, text
        self.scheduler, self.clip_skip = scheduler, 1
        self.zeros_for_no_text = zeros_for_no_text
        self.process = Ddpm.from_scheduler(scheduler)
        self.resolution, self.multiple = _unet.sizes(unet, vae)

    @property
    def spec(self) -> str:
        """Which of the released models this is like, for the metadata of adapters."""
        return "sdxl-v" if self.process.prediction == "v_prediction" else "sdxl"

    @classmethod
    def load(cls, base: Base, dtype: torch.dtype, device: torch.device | str) -> Family:
        """From the files of a base; frozen, in `dtype`, the VAE in fp32."""
        zeros = bool(base.settings.get("force_zeros_for_empty_prompt", True))
        return cls(base.name, *_unet.read(base, cls.parts, dtype, device), zeros)

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

    def encode_text(
        self, tokens: dict[str, Tensor], weights: Mapping[str, Tensor] = NO_WEIGHTS
    ) -> dict[str, Tensor]:
        """Token ids by stack, (B, L) each, to {"text": (B, L, D1 + D2), "pooled": (B, D2)}."""
        states = []
        for stack in self.text:
            output = stack.encoder(tokens[stack.name], output_hidden_states=True)
            hidden = output.hidden_states[-1 - self.clip_skip]
            states.append(emphasised(hidden, weights.get(stack.name)))
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
            force_zeros_for_empty_prompt=self.zeros_for_no_text,
            add_watermarker=False,
        )
