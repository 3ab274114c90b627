"""What each method promises beside the matrix: options, exactness, and what its files hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from dreamtune import families, loop, losses, plugins
from dreamtune.artifacts import Artifact
from dreamtune.errors import Usage
from dreamtune.methods import Concept, _targets, _thaw
from dreamtune.objective import Objective
from dreamtune.sampling import Look, pictures
from dreamtune.stages.trained import Trained
from dreamtune.store import Store
from tests import untrained
from tests.test_matrix import predict, run_matrix_case

CONCEPTS = [Concept("[V01]", "dog", "rex")]
METHODS = plugins.names("dreamtune.methods")


def attached(base: str, method: str, **options: object) -> tuple[families.Family, object]:
    """A tiny base with a method in it, the options as given."""
    family = families.load(f"tiny:{base}", torch.float32)
    module = plugins.load("dreamtune.methods", method)
    made = module.Method(module.Options(**options))
    made.attach(family, CONCEPTS, seed=0, teacher=True)
    return family, made


@pytest.mark.parametrize("base", plugins.names("dreamtune.families"))
@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_is_the_untrained_base_bit_for_bit(base: str, method: str) -> None:
    family, made = attached(base, method)
    parameters = [p for group in made.groups() for p in group.parameters.values()]
    with torch.no_grad():
        for p in parameters:
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
    trained = predict(family, "a [V01] dog")
    parameters[0].requires_grad_(False)
    with made.teacher(family):
        taught = predict(family, "a dog")
    assert torch.equal(taught, predict(families.load(f"tiny:{base}", torch.float32), "a dog"))
    assert torch.equal(trained, predict(family, "a [V01] dog"))
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)


# ---- options

EVERYTHING = {
    "dreambooth": {"train_text": True, "unfreeze": "1:all@0.5", "unfreeze_denoiser": "0:all@0.6"},
    "lora": {
        "rank": 3,
        "alpha": 2.0,
        "rslora": True,
        "targets": ("all",),
        "train_text": True,
        "train_token": True,
        "vectors": 2,
        "unfreeze_denoiser": "1:all@0.5",
    },
    "embedding": {"vectors": 3},
}


@pytest.mark.parametrize("base", plugins.names("dreamtune.families"))
@pytest.mark.parametrize("method", METHODS)
def test_with_every_option_a_trained_concept_comes_back(
    base: str, method: str, store: Store, make_prep: Callable[..., Artifact]
) -> None:
    run_matrix_case(base, method, store, make_prep(), **EVERYTHING[method])


@pytest.mark.parametrize("base", ["sd", "sdxl"])
@pytest.mark.parametrize("options", [{"train_text": True}, {"dora": True, "targets": ("all",)}])
def test_diffusers_paints_the_same_with_a_lora(
    base: str, options: dict[str, object], store: Store
) -> None:
    artifact = untrained.make(store, "rex", base=f"tiny:{base}", rank=4, **options)
    family = families.load(f"tiny:{base}", torch.float32)
    Trained(artifact).put_in(family)
    look = Look(steps=2, guidance=4.0, size=(64, 64))
    (ours,) = pictures(family, "a [V01] dog", [5], look)
    pipeline = families.load(f"tiny:{base}", torch.float32).pipeline()
    (plain,) = (np.asarray(p).astype(int) for p in paint(pipeline, "a dog"))
    pipeline.load_lora_weights(artifact.path)
    word = artifact.read_json("adapter.json")["concepts"][0]["bindings"][0]["word"]
    (theirs,) = (np.asarray(p).astype(int) for p in paint(pipeline, f"a {word} dog"))
    assert np.abs(np.asarray(ours) - theirs).max() <= 1
    assert np.abs(plain - theirs).max() > 8


def paint(pipeline: Any, prompt: str) -> list[Any]:
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(5)]
    look = {"num_inference_steps": 2, "guidance_scale": 4.0, "width": 64, "height": 64}
    return list(pipeline(prompt, generator=generator, **look).images)


def test_lora_goes_where_targets_and_blocks_say() -> None:
    unet = families.load("tiny:sd", torch.float32)
    presets = unet.lora_targets

    def chosen(*targets: str, blocks: tuple[str, ...] = ()) -> list[str]:
        return _targets.choose(unet.denoiser, presets, targets, blocks)

    down, up = "down_blocks.0.attentions.0.", "up_blocks.1.attentions.0."
    block = "transformer_blocks.0."
    assert chosen("attn2.to_*", blocks=("down", "up.1.attentions.0")) == [
        f"{place}{block}attn2.{name}"
        for place in (down, up)
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    assert chosen("attention", blocks=("MID",)) == chosen("attention", blocks=("mid",))
    assert {p.split(".")[0] for p in chosen("attention", blocks=("MID",))} == {"mid_block"}
    assert chosen("attention", blocks=("IN01",)) == [p for p in chosen("attention") if down in p]
    assert chosen("conv1", blocks=("OUT0[23]",)) == [
        "up_blocks.1.resnets.0.conv1",
        "up_blocks.1.resnets.1.conv1",
    ]
    assert chosen(r"re:attentions\.1\..*\.ff") == [
        f"up_blocks.1.attentions.1.{block}ff.net.{name}" for name in ("0.proj", "2")
    ]
    everything = chosen("all")
    assert {"up_blocks.0.upsamplers.0.conv", f"{down}proj_in"} <= set(everything)
    assert "conv_in" not in everything
    for wrong in ({"targets": ("attentoin",)}, {"targets": ("attention",), "blocks": ("up.7",)}):
        with pytest.raises(Usage):
            chosen(*wrong["targets"], blocks=wrong.get("blocks", ()))


# ---- progressive unfreezing

UNET = [
    "conv_in.weight",
    "time_embedding.linear_1.weight",
    "down_blocks.0.resnets.0.conv1.weight",
    "up_blocks.0.resnets.0.conv1.weight",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "conv_out.weight",
]
CLIP = [f"text_model.encoder.layers.{i}.mlp.fc1.weight" for i in (10, 2, 9, 11)]
CLIP += ["text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"]


def test_blocks_thaw_from_the_last_one_on() -> None:
    at = _thaw.starts(UNET, "2:3@0.25:all@0.5")
    assert [at[name] for name in UNET] == [0.5, 0.5, 0.5, 0, 0, 0.25, 0]
    at = _thaw.starts(CLIP, "3:all@0.5")
    assert [at[name] for name in CLIP] == [0, 0.5, 0, 0, 0.5, 0]
    assert _thaw.starts(CLIP, "2").keys() == {CLIP[0], CLIP[3], CLIP[5]}
    assert set(_thaw.starts(UNET, None).values()) == {0}
    assert set(_thaw.starts(UNET, "0:all@0.3").values()) == {0.3}


@pytest.mark.parametrize(
    "plan", ["", "all@0.5", "3:2@0.5", "3:all", "3:all@1.5", "three", "3@.1:4@.1"]
)
def test_a_plan_that_cannot_be_meant_is_refused(plan: str) -> None:
    with pytest.raises(Usage, match=r"3:all@0\.5"):
        _thaw.parse(plan)


@pytest.mark.parametrize("base", plugins.names("dreamtune.families"))
def test_every_block_of_every_family_is_found(base: str) -> None:
    """A plan that reaches no block would freeze the whole run."""
    family = families.load(f"tiny:{base}", torch.float32)
    for module in (family.denoiser, *(stack.encoder for stack in family.text)):
        names = [name for name, _ in module.named_parameters()]
        shares = list(_thaw.starts(names, "1:all@0.5").values())
        assert shares.count(0) > 4 and shares.count(0.5) > 4


def test_frozen_layers_hold_no_optimizer_state() -> None:
    family, made = attached("sd", "dreambooth", unfreeze_denoiser="1:all@0.5")
    groups = made.groups()
    optimizer = torch.optim.AdamW(
        {"params": [*g.parameters.values()], "peak": 1e-3, "start": round(4 * g.start)}
        for g in groups
    )
    source = torch.Generator().manual_seed(3)
    batch = {name: torch.randn(2, 4, 8, 8, generator=source) for name in ("mean", "std", "noise")}
    batch |= {"posterior_noise": batch["std"], "u": torch.tensor([0.1, 0.7])}
    batch |= {"weight": torch.full((2,), 0.5), "meta": torch.zeros(2, 6)}
    batch["text"] = {"text": torch.randn(2, 77, 32, generator=source)}
    steps = loop.train(
        Objective(family, made.live(), losses.l2),
        optimizer,
        lambda step: [batch],
        accelerator=Accelerator(cpu=True),
        rate=lambda step: 1.0,
        steps=range(4),
        seed=0,
        clip=1.0,
    )
    last, rest = (set(g.parameters.values()) for g in groups)
    before = [p.detach().clone() for p in rest]
    for step in steps:
        assert optimizer.state.keys() == (last if step.number <= 2 else last | rest)
        moved = [not torch.equal(p, old) for p, old in zip(rest, before, strict=True)]
        assert any(moved) == (step.number > 2)


# ---- new words


@pytest.mark.parametrize("keep_norm", [True, False])
def test_a_word_keeps_its_length_and_no_other_row_changes(keep_norm: bool) -> None:
    family, made = attached("sdxl", "embedding", vectors=2, init_word="ab", keep_norm=keep_norm)
    plain = families.load("tiny:sdxl", torch.float32)
    (group,) = made.groups()
    tokens = {stack.name: stack.tokenize(["a [V01] dog"]) for stack in family.text}
    optimizer = torch.optim.AdamW(group.parameters.values(), lr=0.1, weight_decay=0.0)
    for _ in range(3):
        family.encode_text(tokens)["text"].square().mean().backward()
        optimizer.step()
    for stack, old in zip(family.text, plain.text, strict=True):
        before = old.encoder.get_input_embeddings().weight
        after = stack.encoder.get_input_embeddings().weight
        assert torch.equal(after[: len(before)], before)
        start = before[old.ids("ab")]  # two pieces, one for each vector
        assert len(after) == len(before) + 2 and (after[-2:] - start).norm() > 0.1
        assert keep_norm == torch.allclose(after[-2:].norm(dim=1), start.norm(dim=1), rtol=1e-5)


def test_a_vector_starts_from_the_middle_of_its_words_as_long_as_they_are() -> None:
    family, _ = attached("sd", "embedding", init_word="red fox")
    stack = family.text[0]
    table = stack.encoder.get_input_embeddings().weight
    pieces, row = table[stack.ids("red fox")], table[-1]
    assert torch.cosine_similarity(row, pieces.mean(0), dim=0) > 0.9999
    assert torch.allclose(row.norm(), pieces.norm(dim=1).mean())
    one = attached("sd", "embedding", init_word="c")[0].text[0]
    table = one.encoder.get_input_embeddings().weight
    assert torch.equal(table[-1], table[one.ids("c")[0]])
