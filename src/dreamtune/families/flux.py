"""FLUX.1 dev and schnell (Black Forest Labs, 2024), on diffusers' modules.

T5 gives the text, CLIP one pooled vector. Latents go to the transformer as a row of 2 x 2 patches.
dev is distilled from guidance: it is told a guidance scale, and takes no negative prompt; schnell
is distilled to four steps and told none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from dreamtune.bases import Base
from dreamtune.bases.overrides import Overrides
from dreamtune.diffusion import Flow
from dreamtune.errors import Usage
from dreamtune.families import _flow, _parts, _tiny, _vae
from dreamtune.families._text import NO_WEIGHTS, TextStack, emphasised, read_stacks

T5_LENGTHS = {True: 512, False: 256}  # tokens of a prompt: dev's, schnell's
_MLP = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"]


class Family:
    """CLIP and T5, a transformer with guidance embedding or without, rectified flow."""

    name = lora_layout = "flux"
    pipelines: tuple[str, ...] = ("FluxPipeline",)
    parts: ClassVar = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    optional = ()
    sampler = "Euler"
    denoiser_name = "transformer"
    reads_chunks = False
    distilled = True
    zeros_for_no_text = False
    encode_image, decode_image = _vae.encode_image, _vae.decode_image

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
        guided = bool(transformer.config.guidance_embeds)
        self.spec = "flux-dev" if guided else "flux-schnell"
        # At 1 the distilled model predicts what plain training teaches it.
        self.guidance: float | None = 1.0 if guided else None
        self.resolution = int(vae.config.sample_size)
        self.multiple = 2 * _vae.spatial_factor(vae)
        singles = range(transformer.config.num_single_layers)
        mlp = [*_MLP, *(f"single_transformer_blocks.{i}.proj_out" for i in singles)]
        attention = _flow.ATTENTION
        both = [*attention, *mlp]
        self.lora_targets = {"attention": attention, "attention+mlp": both, "all": both}

    @classmethod
    def load(cls, base: Base, dtype: torch.dtype, device: torch.device | str) -> Family:
        """From the files of a base; frozen, in `dtype`, the VAE in fp32."""
        parts = _parts.read(base, cls.parts, dtype, device)
        transformer, vae = parts.pop("transformer"), parts.pop("vae")
        text = read_stacks(base, parts, T5_LENGTHS[bool(transformer.config.guidance_embeds)])
        return cls(base.name, transformer, vae, text, _flow.scheduler(base))

    @classmethod
    def tiny(cls, guided: bool = True) -> Family:
        """Random weights, 64 px; dev in small, or schnell."""
        transformer = _tiny.seeded(
            1,
            lambda: FluxTransformer2DModel(
                in_channels=64,
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=16,
                pooled_projection_dim=32,
                guidance_embeds=guided,
                axes_dims_rope=(4, 6, 6),
            ),
        )
        text = [
            _tiny.clip("text_encoder", 32, seed=2),
            _tiny.t5("text_encoder_2", 16, seed=3, length=T5_LENGTHS[guided]),
        ]
        vae = _tiny.autoencoder(16, seed=4, shift=0.1)
        scheduler = FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guided else 1.0, use_dynamic_shifting=guided
        )
        return cls("tiny:flux", transformer, vae, text, scheduler)

    def override(self, said: Overrides) -> None:
        """Usage for what cannot be said of FLUX.1: CLIP's pooled vector has no layer to skip to."""
        _flow.refuse_diffusion(self, said)
        if said.clip_skip is not None:
            raise Usage(f"--clip-skip is not for {self.base}", why="T5 gives its text")

    def encode_text(
        self, tokens: dict[str, Tensor], weights: Mapping[str, Tensor] = NO_WEIGHTS
    ) -> dict[str, Tensor]:
        """Token ids by stack, (B, L) each, to {"text": (B, L2, D), "pooled": (B, P)}."""
        clip, t5 = self.text
        pooled = clip.encoder(tokens[clip.name]).pooler_output
        text = t5.encoder(tokens[t5.name])[0]
        return {"text": emphasised(text, weights.get(t5.name)), "pooled": pooled}

    def condition(self, text: dict[str, Tensor], meta: Tensor) -> dict[str, Tensor]:
        """What `predict` needs; this family takes no account of sizes and crops."""
        return text

    def predict(self, xt: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """The velocity for noisy latents (B, C, h, w) at times (B,) in [0, 1000].

        cond may have "guidance" (B,), the scale that dev is told.
        """
        guidance = None
        if self.guidance is not None:
            guidance = cond.get("guidance", torch.full_like(t, self.guidance))
        size = (xt.shape[-2], xt.shape[-1])
        text = cond["text"].to(xt.dtype)
        velocity = self.denoiser(
            hidden_states=pack(xt),
            timestep=t / 1000,
            guidance=guidance,
            pooled_projections=cond["pooled"].to(xt.dtype),
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=positions(size, xt.device),
            return_dict=False,
        )[0]
        return unpack(velocity, size)

    def times(self, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        """What the pipeline tells a scheduler beside the number of steps, for size (w, h) px."""
        sigmas = np.linspace(1.0, 1 / steps, steps)
        return {"sigmas": sigmas, **_flow.shift_by_size(self.scheduler, size, self.multiple)}

    def pipeline(self) -> FluxPipeline:
        """A diffusers pipeline over the same modules."""
        clip, t5 = self.text
        return FluxPipeline(
            vae=self.vae,
            text_encoder=clip.encoder,
            text_encoder_2=t5.encoder,
            tokenizer=clip.tokenizer,
            tokenizer_2=t5.tokenizer,
            transformer=self.denoiser,
            scheduler=self.scheduler,
        )


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) to a row of 2 x 2 patches, (B, h/2 * w/2, 4 C)."""
    b, c, h, w = latents.shape
    patches = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(row: Tensor, size: tuple[int, int]) -> Tensor:
    """Undoes `pack` for latents of `size` (h, w)."""
    (b, _, c), (h, w) = row.shape, size
    patches = row.reshape(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, c // 4, h, w)


def positions(size: tuple[int, int], device: torch.device) -> Tensor:
    """Nothing, row and column of each patch, (h/2 * w/2, 3), in fp32: bf16 counts to 256 only."""
    rows, columns = (torch.arange(n // 2, device=device, dtype=torch.float32) for n in size)
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)
