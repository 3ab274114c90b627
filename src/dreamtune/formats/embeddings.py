"""Textual inversion files (https://arxiv.org/abs/2208.01618): the vectors of new words.

The neutral form is {word: {component: (n, dim)}}: n vectors for each text encoder that learned it.
The word is None where only the name of the file says it.

    for UIs         {"emb_params": (n, dim)}; with several encoders {"clip_l": (n, 768),
                    "clip_g": (n, 1280), "t5xxl": (n, 4096)}, those of them that there are; the
                    word is the name of the file
    for diffusers   {"<word>": (n, dim)}; with several encoders clip_l and so on again, which
                    load_textual_inversion takes one by one
    others          "string_to_param.*", as A1111's pickles become; "text_encoders_0" and "_1", of
                    diffusers' advanced scripts; "bundle_emb.<word>.<any of these>" in a LoRA file

As in kohya's files T5 is the third encoder in every family.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dreamtune.errors import Damaged
from dreamtune.formats.lora import Shape

if TYPE_CHECKING:
    from torch import Tensor

ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
SECOND = 1280  # the width of SDXL's second encoder, which no first encoder has
BUNDLED = "bundle_emb."
ONE_WORD = re.compile(r"emb_params|string_to_param\..*|\*")  # the word is the file's name
NUMBERED = re.compile(r"text_encoders_([01])")

Words = dict[str | None, dict[str, "Tensor"]]


def dump(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file for A1111, ComfyUI, InvokeAI and SwarmUI: one word."""
    if vectors.keys() == {"text_encoder"}:
        return {"emb_params": vectors["text_encoder"].contiguous()}
    return {name: vectors[part].contiguous() for name, part in ENCODERS.items() if part in vectors}


def dump_diffusers(token: str, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of learned_embeds.safetensors, for `pipe.load_textual_inversion`."""
    if vectors.keys() == {"text_encoder"}:
        return {token: vectors["text_encoder"].contiguous()}
    return dump(vectors)


def dump_bundled(word: str, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The word as a part of a LoRA file: A1111, Forge and OneTrainer read it there."""
    one = vectors.keys() == {"text_encoder"}
    keys = {"string_to_param.*": vectors["text_encoder"].contiguous()} if one else dump(vectors)
    return {f"{BUNDLED}{word}.{key}": tensor for key, tensor in keys.items()}


def places(shapes: Mapping[str, Shape]) -> dict[str, tuple[str | None, str]]:
    """{key: (word, component)} of the vectors. Damaged names a key that is none."""
    found = {key: _place(key, shape) for key, shape in shapes.items()}
    seen: dict[tuple[str | None, str], str] = {}
    for key, place in found.items():
        if (other := seen.setdefault(place, key)) != key:
            raise Damaged(f"{key!r} says again what {other!r} says")
    return found


def _place(key: str, shape: Shape) -> tuple[str | None, str]:
    if len(shape) not in (1, 2) or not all(shape):
        raise Damaged(f"{key!r} is no embedding", why=f"its shape is {shape}")
    word, name = None, key
    if key.startswith(BUNDLED):
        word, _, name = key.removeprefix(BUNDLED).partition(".")
        if not word or not (name in ENCODERS or ONE_WORD.fullmatch(name)):
            raise Damaged(f"{key!r} is no embedding", why="it names no word, or no known tensor")
    component = "text_encoder_2" if shape[-1] == SECOND else "text_encoder"
    if name in ENCODERS:
        return word, ENCODERS[name]
    if number := NUMBERED.fullmatch(name):
        return word, "text_encoder_2" if number[1] == "1" else "text_encoder"
    return (word if word or ONE_WORD.fullmatch(name) else name), component


def parse(tensors: Mapping[str, Tensor]) -> Words:
    """The words of a file, or of those keys of one that hold them."""
    words: Words = defaultdict(dict)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for key, (word, component) in places(shapes).items():
        tensor = tensors[key]
        if not tensor.is_floating_point():
            raise Damaged(f"{key!r} is no embedding", why=f"it is of {tensor.dtype}")
        # Some tools write a single vector as (dim,).
        words[word][component] = tensor.reshape(-1, tensor.shape[-1])
    return dict(words)
