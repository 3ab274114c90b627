"""Textual inversion files, there and back, and into real pipelines of diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dreamtune.errors import Damaged
from dreamtune.formats import embeddings
from dreamtune.fsops import write_safetensors

ONE = {"text_encoder": torch.randn(2, 12)}
TWO = {"text_encoder": torch.randn(2, 12), "text_encoder_2": torch.randn(2, 20)}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("vectors", [ONE, TWO], ids=["one encoder", "two encoders"])
def test_round_trips(vectors: dict[str, Tensor]) -> None:
    ((word, read),) = embeddings.parse(embeddings.dump(vectors)).items()
    assert word is None and equal(read, vectors)
    ((word, read),) = embeddings.parse(embeddings.dump_diffusers("<rex>", vectors)).items()
    assert word == ("<rex>" if vectors is ONE else None) and equal(read, vectors)


def test_names_that_uis_look_for() -> None:
    assert embeddings.dump(ONE).keys() == {"emb_params"}
    assert embeddings.dump(TWO).keys() == {"clip_l", "clip_g"}
    assert embeddings.dump_diffusers("rex", ONE).keys() == {"rex"}


def test_a_single_vector_without_the_first_dimension() -> None:
    read = embeddings.parse({"<rex>": torch.ones(12)})
    assert read["<rex>"]["text_encoder"].shape == (1, 12)


@pytest.mark.parametrize(
    ("given", "word", "components"),
    [
        ({"*": torch.ones(2, 12)}, None, ["text_encoder"]),
        ({"string_to_param.*": torch.ones(2, 12)}, None, ["text_encoder"]),
        ({"<rex>": torch.ones(2, 1280)}, "<rex>", ["text_encoder_2"]),
        ({"clip_g": torch.ones(2, 1280)}, None, ["text_encoder_2"]),
        (
            {"text_encoders_0": torch.ones(2, 12), "text_encoders_1": torch.ones(2, 20)},
            None,
            ["text_encoder", "text_encoder_2"],
        ),
    ],
)
def test_other_forms(given: dict[str, Tensor], word: str | None, components: list[str]) -> None:
    ((found, vectors),) = embeddings.parse(given).items()
    assert found == word and sorted(vectors) == components


def test_several_words_in_one_file() -> None:
    read = embeddings.parse({"<s1>": torch.ones(12), "<s2>": torch.zeros(2, 12)})
    assert {word: len(v["text_encoder"]) for word, v in read.items()} == {"<s1>": 1, "<s2>": 2}


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"emb_params": torch.ones(1, 2), "*": torch.ones(1, 2)}, "says again"),
        ({"emb_params": torch.ones(1, 2, 3)}, r"\(1, 2, 3\)"),
        ({"emb_params": torch.ones(0, 12)}, r"\(0, 12\)"),
        ({"emb_params": torch.ones(1, 12, dtype=torch.int64)}, "int64"),
    ],
)
def test_refuses_by_name(tensors: dict[str, Tensor], why: str) -> None:
    with pytest.raises(Damaged, match=why):
        embeddings.parse(tensors)


def test_diffusers_loads_ours(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [*"abcdefgh", *(f"{c}</w>" for c in "abcdefgh")]
    words = ["<|startoftext|>", "<|endoftext|>", *letters]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    pipe = StableDiffusionPipeline(
        None,
        CLIPTextModel(config),
        tokenizer,
        None,
        None,
        None,
        None,
        requires_safety_checker=False,
    )
    for name, tensors in {
        "learned_embeds": embeddings.dump_diffusers("<rex>", ONE),
        "rex": embeddings.dump(ONE),
    }.items():
        write_safetensors(tmp_path / f"{name}.safetensors", tensors)
    pipe.load_textual_inversion(tmp_path, weight_name="learned_embeds.safetensors")
    pipe.load_textual_inversion(load_file(tmp_path / "rex.safetensors"), token="rex")
    table = pipe.text_encoder.get_input_embeddings().weight
    for word in ("<rex>", "rex"):
        ids = pipe.tokenizer.convert_tokens_to_ids([word, f"{word}_1"])
        assert torch.equal(table[ids], ONE["text_encoder"])
