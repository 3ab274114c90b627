"""Infotext: every prompt comes back to the character, and other readers see the parameters."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dreamtune.formats.infotext import NEGATIVE, dump, parse

PARAMETERS: dict[str, Any] = {
    "Steps": 20,
    "Sampler": "DDIM",
    "CFG scale": 7.5,
    "Seed": 1234,
    "Size": "512x768",
    "Model": "mini",
    "Version": "dreamtune 0.1.0",
}
HOSTILE = [
    "",
    " ",
    "a dog\nin the snow",
    "  spaces \n around  \n",
    "Steps: 99, Sampler: Euler, CFG scale: 1, Seed: 9",
    "dog\nSteps: 99, Sampler: Euler, CFG scale: 1, Seed: 9",
    "dog\nNegative prompt: cat\nSteps: 1, Sampler: x, Seed: 2",
    "Negative prompt:",
    'a "quoted" dog, \\"twice\\": \\',
    "(word:1.2), [a:b:0.5] <lora:rex:0.8> {x|y}",
    "Hashes: {a}, Exact prompt: no",
    "🐕👩‍🚀 犬 שלום \u202e",
    "tab\tnul\0escape\x1b[31m bell\a return\r\nnext\x85line\u2028end",
    "lone surrogate \ud800",
    "a, " * 33_000,
    "x" * 100_000,
    " " * 100_000,
    '":' * 20_000,
]
text = st.text() | st.text(alphabet='a :,"\\\n{}', max_size=60) | st.sampled_from(HOSTILE)


@pytest.mark.parametrize("prompt", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("negative", ["", "blurry", *HOSTILE[6:9]])
def test_hostile_prompts_come_back(prompt: str, negative: str) -> None:
    started = time.perf_counter()
    read = parse(dump(prompt, negative, PARAMETERS))
    assert (read.prompt, read.negative) == (prompt, negative)
    assert read.parameters == {key: str(value) for key, value in PARAMETERS.items()}
    assert time.perf_counter() - started < 2, "not linear in the length"


@settings(max_examples=1000, deadline=None)
@given(prompt=text, negative=text, value=text)
@example(prompt="Negative prompt: ", negative=" ", value='"a')
def test_any_text_comes_back(prompt: str, negative: str, value: str) -> None:
    read = parse(dump(prompt, negative, {**PARAMETERS, "Model": value}))
    assert (read.prompt, read.negative) == (prompt, negative)
    assert read.parameters["Model"] == value


def test_an_ordinary_prompt_is_the_plain_format() -> None:
    assert dump("a dog,\nrunning", "blurry, dark", PARAMETERS) == (
        "a dog,\nrunning\nNegative prompt: blurry, dark\nSteps: 20, Sampler: DDIM, CFG scale: 7.5, "
        "Seed: 1234, Size: 512x768, Model: mini, Version: dreamtune 0.1.0"
    )
    assert dump("dog", "", {"Lora hashes": "rex: 0123, v: 9", "Steps": 1, "Seed": 2}) == (
        'dog\nLora hashes: "rex: 0123, v: 9", Steps: 1, Seed: 2'
    )


def test_reads_a1111s_own() -> None:
    read = parse(
        "a cat\nsecond line\nNegative prompt: ugly\nbad\nSteps: 20, Sampler: DPM++ 2M, "
        "Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, "
        'Lora hashes: "a: 1, b: 2", Version: v1.10.1'
    )
    assert (read.prompt, read.negative) == ("a cat\nsecond line", "ugly\nbad")
    assert read.parameters["Lora hashes"] == "a: 1, b: 2"
    assert read.parameters["Sampler"] == "DPM++ 2M"


@pytest.mark.parametrize("prompt", ["", "just a prompt", "two: few, colons: here", "x" * 200_000])
def test_text_without_parameters_is_all_prompt(prompt: str) -> None:
    assert parse(prompt).prompt == prompt
    assert parse(prompt).parameters == {}


@settings(max_examples=300, deadline=None)
@given(prompt=text, negative=text)
def test_sd_parsers_reads_ours(prompt: str, negative: str) -> None:
    automatic1111 = pytest.importorskip("sd_parsers.parsers").AUTOMATIC1111Parser()
    info = automatic1111.parse({"parameters": dump(prompt, negative, PARAMETERS)})
    (sampler,) = info.samplers
    assert (sampler.name, sampler.parameters["steps"]) == ("DDIM", "20")
    assert (sampler.parameters["seed"], sampler.parameters["cfg_scale"]) == ("1234", "7.5")
    assert info.metadata["Size"] == "512x768"
    if prompt.strip() == prompt and prompt.isprintable() and prompt and NEGATIVE not in prompt:
        assert sampler.prompts[0].value == prompt


def test_through_a_png(tmp_path: Any) -> None:
    from PIL import Image, PngImagePlugin

    for i, prompt in enumerate(HOSTILE):
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", dump(prompt, "🐕\n", PARAMETERS))
        Image.new("RGB", (1, 1)).save(tmp_path / f"{i}.png", pnginfo=info)
        with Image.open(tmp_path / f"{i}.png") as image:
            image.load()
            read = parse(image.info["parameters"])
        assert (read.prompt, read.negative) == (prompt, "🐕\n")
