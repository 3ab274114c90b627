"""Textual inversion files (https://arxiv.org/abs/2208.01618): the vectors of one new word.

The neutral form is {component: (n, dim)}: n vectors for each text encoder that learned them.

    for UIs         {"emb_params": (n, dim)}; with several encoders {"clip_l": (n, 768),
                    "clip_g": (n, 1280), "t5xxl": (n, 4096)}, those of them that there are; the
                    word is the name of the file
    for diffusers   {"<word>": (n, dim)}; with several encoders clip_l and so on again, which
                    load_textual_inversion takes one by one

As in kohya's files T5 is the third encoder in every family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dreamtune.errors import Damaged

if TYPE_CHECKING:
    from torch import Tensor

BUNDLED = "bundle_emb."
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}


def dump(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file for A1111, ComfyUI, InvokeAI and SwarmUI."""
    if vectors.keys() == {"text_encoder"}:
        return {"emb_params": vectors["text_encoder"].contiguous()}
    return {name: vectors[part].contiguous() for name, part in ENCODERS.items() if part in vectors}


def dump_diffusers(token: str, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of learned_embeds.safetensors, for `pipe.load_textual_inversion`."""
    if vectors.keys() == {"text_encoder"}:
        return {token: vectors["text_encoder"].contiguous()}
    return dump(vectors)


def dump_bundled(word: str, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The word as a part of a LoRA file: A1111, ComfyUI and OneTrainer read it there."""
    one = vectors.keys() == {"text_encoder"}
    keys = {"string_to_param.*": vectors["text_encoder"].contiguous()} if one else dump(vectors)
    return {f"{BUNDLED}{word}.{key}": tensor for key, tensor in keys.items()}


def parse_bundled(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The vectors of each word in a LoRA file, as `dump_bundled` writes them."""
    words: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(BUNDLED):
            word, _, name = key.removeprefix(BUNDLED).partition(".")
            words.setdefault(word, {})[ENCODERS.get(name, "text_encoder")] = _vectors(key, tensor)
    return words


def parse(tensors: Mapping[str, Tensor]) -> tuple[str | None, dict[str, Tensor]]:
    """(the word, where the file says it; the vectors) of either kind of file."""
    if tensors and tensors.keys() <= ENCODERS.keys():
        return None, {ENCODERS[name]: _vectors(name, tensor) for name, tensor in tensors.items()}
    if len(tensors) != 1:
        raise Damaged("this is no embedding", why=f"it has the keys {', '.join(sorted(tensors))}")
    key, tensor = next(iter(tensors.items()))
    token = None if key == "emb_params" else key
    return token, {"text_encoder": _vectors(key, tensor)}


def _vectors(name: str, tensor: Tensor) -> Tensor:
    """(n, dim); some tools write a single vector as (dim,)."""
    if tensor.dim() not in (1, 2) or not tensor.numel() or not tensor.is_floating_point():
        why = f"{name!r} is {tensor.dtype} {tuple(tensor.shape)}"
        raise Damaged("this is no embedding", why=why)
    return tensor.reshape(-1, tensor.shape[-1])
