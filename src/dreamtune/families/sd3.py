"""Stable Diffusion 3 and 3.5 (Esser et al., arXiv:2403.03206), with two CLIPs and T5.

Each text encoder can be absent: training left each out at random (section 5.2 of the paper), as
zeros. So does diffusers where T5 is absent; without a CLIP it can train, but not read a prompt.
"""

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
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from dreamtune.bases import Base
from dreamtune.bases.overrides import Overrides
from dreamtune.diffusion import Flow
from dreamtune.errors import Usage
from dreamtune.families import _flow, _parts, _text, _tiny, _vae
from dreamtune.families._text import NO_WEIGHTS, TextStack, emphasised, read_stacks

CLIP_LENGTH, T5_LENGTH = 77, 256  # tokens, of an absent encoder too
CLIP, T5 = ("text_encoder", "text_encoder_2"), "text_encoder_3"
_MLP = ["net.0.proj", "net.2"]


class Family:
    """Up to three text encoders, read jointly with the image by a transformer; rectified flow."""

    name = lora_layout = "sd3"
    pipelines: tuple[str, ...] = ("StableDiffusion3Pipeline",)
    parts: ClassVar = {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    optional = (*CLIP, T5)
    sampler = "Euler"
    denoiser_name = "transformer"
    reads_chunks = False
    distilled = False
    guidance = None
    zeros_for_no_text = False
    lora_targets: ClassVar = {
        "attention": _flow.ATTENTION,
        "attention+mlp": [*_flow.ATTENTION, *_MLP],
        "all": [*_flow.ATTENTION, *_MLP],  # without AdaLN, for which kohya's layout has no names
    }
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
        self.scheduler, self.clip_skip = scheduler, 1
        self.process = Flow.from_scheduler(scheduler)
        factor = _vae.spatial_factor(vae)
        self.resolution = int(transformer.config.sample_size) * factor
        self.multiple = factor * int(transformer.config.patch_size)
        if not text:
            raise Usage(f"{base} has no text encoder", fix="get at least one of its three")

    @property
    def spec(self) -> str:
        """Which of the released models this is like, for the metadata of adapters."""
        if not self.denoiser.config.qk_norm:
            return "sd3-medium"
        return "sd35-medium" if self.denoiser.config.dual_attention_layers else "sd35-large"

    @classmethod
    def load(cls, base: Base, dtype: torch.dtype, device: torch.device | str) -> Family:
        """From the files of a base; frozen, in `dtype`, the VAE in fp32."""
        parts = _parts.read(base, cls.parts, dtype, device)
        transformer, vae = parts.pop("transformer"), parts.pop("vae")
        text = read_stacks(base, parts, T5_LENGTH)
        return cls(base.name, transformer, vae, text, _flow.scheduler(base))

    @classmethod
    def tiny(cls, *absent: str) -> Family:
        """Random weights, 64 px, without the encoders named."""
        text = [
            _tiny.clip("text_encoder", 32, seed=2, projection=True),
            _tiny.clip("text_encoder_2", 16, seed=3, projection=True),
            _tiny.t5("text_encoder_3", 64, seed=5, length=T5_LENGTH),
        ]
        text = [stack for stack in text if stack.name not in absent]
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

    def override(self, said: Overrides) -> None:
        """Let what is said of a base hold. Usage for what cannot be said of a flow."""
        _flow.refuse_diffusion(self, said)
        self.clip_skip = said.clip_skip or 1
        _text.check_clip_skip(self.base, self.text, self.clip_skip)

    def encode_text(
        self, tokens: dict[str, Tensor], weights: Mapping[str, Tensor] = NO_WEIGHTS
    ) -> dict[str, Tensor]:
        """Token ids by stack, (B, L) each, to {"text": (B, 77 + 256, D), "pooled": (B, P)}."""
        c = self.denoiser.config
        states, pooled = self._clip(tokens, weights)
        stacks = {stack.name: stack for stack in self.text}
        if T5 in stacks:
            long = stacks[T5].encoder(tokens[T5])[0]
            long = emphasised(long, weights.get(T5))
        else:
            long = states.new_zeros(len(states), T5_LENGTH, c.joint_attention_dim)
        states = functional.pad(states, (0, c.joint_attention_dim - states.shape[-1]))
        return {"text": torch.cat([states, long], dim=1), "pooled": pooled}

    def _clip(
        self, tokens: dict[str, Tensor], weights: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """States (B, L, P) and pooled text (B, P) of the CLIPs, an absent one's share zeros."""
        stacks = [stack for stack in self.text if stack.name in CLIP]
        states, pooled = [], []
        for stack in stacks:
            output = stack.encoder(tokens[stack.name], output_hidden_states=True)
            hidden = output.hidden_states[-1 - self.clip_skip]
            states.append(emphasised(hidden, weights.get(stack.name)))
            pooled.append(output[0])
        width = self.denoiser.config.pooled_projection_dim
        if not stacks:
            ids, dtype = tokens[T5], self.denoiser.dtype
            none = torch.zeros(len(ids), CLIP_LENGTH, width, dtype=dtype, device=ids.device)
            return none, none[:, 0]
        gap = width - sum(p.shape[-1] for p in pooled)
        share = (0, gap) if stacks[0].name == CLIP[0] else (gap, 0)
        text, vector = (functional.pad(torch.cat(p, dim=-1), share) for p in (states, pooled))
        return text, vector

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
        stacks = {stack.name: stack for stack in self.text}
        encoders = {name: getattr(stacks.get(name), "encoder", None) for name in (*CLIP, T5)}
        tokenizers = {
            name.replace("text_encoder", "tokenizer"): getattr(stacks.get(name), "tokenizer", None)
            for name in encoders
        }
        return StableDiffusion3Pipeline(
            vae=self.vae,
            transformer=self.denoiser,
            scheduler=self.scheduler,
            **encoders,
            **tokenizers,
        )
