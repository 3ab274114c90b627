"""Small random parts that the families' `tiny()` are made of: real classes, seconds to build."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dreamtune.families._text import TextStack

LENGTH = 77


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows bytes and no merges: 514 tokens."""
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=LENGTH)


def clip(name: str, width: int, seed: int, projection: bool = False) -> TextStack:
    """A CLIP text stack of two layers; `projection` gives pooled embeddings of the same width."""
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    encoder = seeded(seed, lambda: kind(config))
    return TextStack(name, words, encoder.eval().requires_grad_(False), LENGTH)


def t5_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer that knows printable ASCII characters, alone and at a word's beginning."""
    letters = [chr(i) for i in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *letters, *(f"\u2581{c}" for c in letters)]
    vocabulary = [(piece, -1.0 - len(piece)) for piece in pieces]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def t5(name: str, width: int, seed: int, length: int) -> TextStack:
    """A T5 text stack of two layers; its table is longer than its vocabulary, as T5's is."""
    words = t5_tokenizer()
    config = T5Config(
        vocab_size=len(words) + 28,
        d_model=width,
        d_kv=width // 2,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    encoder = seeded(seed, lambda: T5EncoderModel(config))
    return TextStack(name, words, encoder, length)


def autoencoder(channels: int, seed: int, shift: float | None = None) -> AutoencoderKL:
    """An 8x autoencoder with `channels` latent channels."""
    return seeded(
        seed,
        lambda: AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=channels,
            norm_num_groups=4,
            layers_per_block=1,
            mid_block_add_attention=False,
            sample_size=64,
            scaling_factor=0.5,
            shift_factor=shift,
        ),
    )


def ddim() -> DDIMScheduler:
    """The scheduler of SD 1.5 and SDXL."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def seeded(seed: int, build: Any) -> Any:
    """Build with the global generator at `seed`, and leave that generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval().requires_grad_(False)
