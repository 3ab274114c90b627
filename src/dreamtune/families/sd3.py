"""Stable Diffusion 3.x (Esser et al., arXiv:2403.03206), without its optional T5 encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection

from dreamtune.bases import Base
from dreamtune.diffusion import Flow
from dreamtune.families import _flow, _tiny, _unet
from dreamtune.families._text import NO_WEIGHTS, TextStack, emphasised, read_stacks

T5_LENGTH = 256  # tokens that the absent T5 leaves as zeros, as the diffusers pipeline does


_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_ATTENTION += ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]  # the text stream's
_MLP = ["net.0.proj", "net.2"]


class Family:
    """Two CLIP encoders read jointly with the image by a transformer; rectified flow."""

    name = lora_layout = "sd3"
    spec = "sd3-medium"
    pipelines: tuple[str, ...] = ("StableDiffusion3Pipeline",)
    parts: ClassVar = {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    optional = ()
    sampler = "Euler"
    denoiser_name = "transformer"
    reads_chunks = False
    distilled = False
    lora_targets: ClassVar = {
        "attention": _ATTENTION,
        "attention+mlp": [*_ATTENTION, *_MLP],
        "all": [*_ATTENTION, *_MLP],  # without AdaLN, for which kohya's layout has no names
    }

    def __init__(
        self,
        base: str,
        transformer: Any,
        vae: Any,
        text: list[TextStack],
        scheduler: FlowMatchEulerDiscreteScheduler,
    ) -> None:
        self.base, self.denoiser, self.vae, self.text = base, transformer, vae, text
        self.scheduler = scheduler
        self.process = Flow.from_scheduler(scheduler)
        factor = _unet.spatial_factor(vae)
        self.resolution = int(transformer.config.sample_size) * factor
        self.multiple = factor * int(transformer.config.patch_size)

    @classmethod
    def load(cls, base: Base, dtype: torch.dtype, device: torch.device | str) -> Family:
        """From the files of a base; frozen, in `dtype`, the VAE in fp32."""
        parts = _unet.parts(base, cls.parts, dtype, device)
        text = read_stacks(base, {n: m for n, m in parts.items() if n.startswith("text")})
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(base.config("scheduler"))
        return cls(base.name, parts["transformer"], parts["vae"], text, scheduler)

    @classmethod
    def tiny(cls) -> Family:
        """Random weights, 64 px."""
        text = [
            _tiny.clip("text_encoder", 32, seed=2, projection=True),
            _tiny.clip("text_encoder_2", 16, seed=3, projection=True),
        ]
        transformer = _tiny.seeded(
            1,
            lambda: SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=16,
                out_channels=16,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                caption_projection_dim=32,
                joint_attention_dim=64,
                pooled_projection_dim=48,
                pos_embed_max_size=16,
            ),
        )
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        vae = _tiny.autoencoder(16, seed=4, shift=0.1)
        return cls("tiny:sd3", transformer, vae, text, scheduler)

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior (mean, std) of pixels (B, 3, H, W) in [-1, 1], scaled; each (B, C, h, w)."""
        return _unet.encode_image(self.vae, pixels)

    def decode_image(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1], of scaled latents (B, C, h, w)."""
        return _unet.decode_image(self.vae, latents)

    def encode_text(
        self, tokens: dict[str, Tensor], weights: Mapping[str, Tensor] = NO_WEIGHTS
    ) -> dict[str, Tensor]:
        """Token ids by stack, (B, L) each, to {"text": (B, L + T5_LENGTH, D), "pooled": (B, P)}."""
        states, pooled = [], []
        for stack in self.text:
            output = stack.encoder(tokens[stack.name], output_hidden_states=True)
            states.append(emphasised(output.hidden_states[-2], weights.get(stack.name)))
            pooled.append(output[0])
        text = torch.cat(states, dim=-1)
        width = int(self.denoiser.config.joint_attention_dim)
        text = functional.pad(text, (0, width - text.shape[-1], 0, T5_LENGTH))
        return {"text": text, "pooled": torch.cat(pooled, dim=-1)}

    def condition(self, text: dict[str, Tensor], meta: Tensor) -> dict[str, Tensor]:
        """What `predict` needs; this family takes no account of sizes and crops."""
        return text

    def predict(self, xt: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The velocity for noisy latents (B, C, h, w) at times (B,) in [0, 1000]."""
        return self.denoiser(
            hidden_states=xt,
            timestep=t,
            encoder_hidden_states=cond["text"].to(xt.dtype),
            pooled_projections=cond["pooled"].to(xt.dtype),
            return_dict=False,
        )[0]

    def times(self, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        """What the pipeline tells a scheduler beside the number of steps, for size (w, h) px."""
        return _flow.shift_by_size(self.scheduler, size, self.multiple)

    def pipeline(self) -> StableDiffusion3Pipeline:
        """A diffusers pipeline over the same modules."""
        first, second = self.text
        return StableDiffusion3Pipeline(
            vae=self.vae,
            text_encoder=first.encoder,
            text_encoder_2=second.encoder,
            text_encoder_3=None,
            tokenizer=first.tokenizer,
            tokenizer_2=second.tokenizer,
            tokenizer_3=None,
            transformer=self.denoiser,
            scheduler=self.scheduler,
        )
