"""A base dressed in adapters: alone, several, at their strengths, and bare again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dreamtune import bases, families, plugins
from dreamtune.artifacts import Artifact
from dreamtune.errors import Usage
from dreamtune.formats import infotext
from dreamtune.formats.header import read_header
from dreamtune.fsops import hash_file
from dreamtune.sampling import Look, pictures
from dreamtune.settings import Sample
from dreamtune.stages import sample as stage
from dreamtune.stages.lines import Line
from dreamtune.stages.studio import Studio
from dreamtune.stages.trained import Trained
from dreamtune.stages.writer import Writer
from dreamtune.store import Store
from tests import untrained
from tests.test_matrix import predict

SIZE = (64, 64)
# diffusers' schedulers hand tensors to numpy in a way that it will not take for ever.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
METHODS = plugins.names("dreamtune.methods")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_base_is_itself_again_when_adapters_are_taken_off(
    name: str, method: str, store: Store
) -> None:
    artifact = untrained.make(store, "rex", method, base=f"tiny:{name}")
    studio = Studio(bases.find(f"tiny:{name}"), "cpu", "fp32", several=True)
    plain = predict(studio.family, "a dog")
    studio.painter([Trained(artifact)])
    dressed = predict(studio.family, "a [V01] dog")
    assert (dressed - plain).abs().max() > 1e-3
    studio.painter([])
    assert torch.equal(predict(studio.family, "a dog"), plain)
    studio.painter([Trained(artifact)])
    assert torch.equal(predict(studio.family, "a [V01] dog"), dressed)


def arrays(artifact: Artifact) -> list[np.ndarray]:
    files = [line["file"] for line in artifact.read_json("samples.json")]
    return [np.asarray(Image.open(artifact.path / file)).astype(int) for file in files]


@pytest.fixture
def paint(store: Store) -> Callable[..., Any]:
    """Pictures of some prompts through the stage: (3, H, W, 3) integers, and the artifact."""

    def paint(*prompts: str, refs: tuple[str, ...] = (), **settings: Any) -> Any:
        few = {"steps": 2, "count": 1, "device": "cpu", **settings}
        sample = Sample(**few)
        lines = [Line.read(prompt, sample) for prompt in prompts]
        artifact = stage.run(stage.Run(store, lines, refs, sample))
        return arrays(artifact), artifact

    return paint


@pytest.mark.parametrize("method", ["lora", "embedding"])
def test_strength_0_is_the_base_and_strength_1_the_adapter(
    method: str, store: Store, paint: Callable[..., Any]
) -> None:
    untrained.make(store, "rex", method)
    plain, _ = paint("a dog, dog in snow", refs=("none",), base="tiny:sd", batch=1)
    made, _ = paint(
        "a [V01]:0 dog, [V01]:0 in snow",
        "a [V01] dog, [V01] in snow",
        "a [V01]:1 dog, [V01]:1.0 in snow",
        "a [V01]:0.5 dog, [V01]:0.5 in snow",
        batch=1,
    )
    without, full, one, half = made
    assert np.array_equal(without, plain[0])
    assert np.array_equal(one, full)
    assert np.abs(half - without).max() > 1 and np.abs(half - full).max() > 1


def test_a_strength_is_the_cross_attention_that_it_says(store: Store) -> None:
    """Every layer of the denoiser, against attention computed by hand from both prompts."""
    artifact = untrained.make(store, "rex", "embedding")
    family = families.load("tiny:sd", torch.float32)
    Trained(artifact).put_in(family)
    from dreamtune.sampling.strength import mixed
    from dreamtune.sampling.text import Texts

    texts = Texts(family)
    with_it, without = (texts.states(t, 1)["text"] for t in ("a [V01] dog", "a dog"))
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    layers = {n: m for n, m in family.denoiser.named_modules() if n.endswith("attn2")}

    def hook(name: str) -> Any:
        def record(module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> None:
            seen[name] = (args[0] if args else kwargs["hidden_states"], output)

        return record

    handles = [m.register_forward_hook(hook(n), with_kwargs=True) for n, m in layers.items()]
    xt = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), mixed(family, (0.3, 0.7)):
        both = torch.cat([with_it, without], 1)
        family.predict(xt, torch.tensor([500]), {"text": both})
    for handle in handles:
        handle.remove()
    assert len(seen) == len(layers) > 1
    with torch.no_grad():
        for name, (hidden, output) in seen.items():
            expected = 0.3 * layers[name](hidden, encoder_hidden_states=with_it)
            expected = expected + 0.7 * layers[name](hidden, encoder_hidden_states=without)
            assert torch.allclose(output, expected, atol=1e-5)


def test_several_adapters_together_are_each_and_both(
    store: Store, paint: Callable[..., Any]
) -> None:
    """Two LoRAs and an embedding in one prompt; weights apart; a prompt has only its own."""
    from dreamtune.formats import adapters, lora

    ones = [untrained.make(store, n, identifier=i) for n, i in (("a", "[V01]"), ("b", "[V02]"))]
    untrained.make(store, "word", "embedding", "[V03]", "cat")
    said = "a [V01] dog, a [V02] dog, a [V03] cat"
    made, _ = paint(said, "a [V01] dog", refs=("a@0.5", "b@-0.25", "word"))
    family = families.load("tiny:sd", torch.float32)
    for one, weight in zip(ones, (0.5, -0.25), strict=True):
        from safetensors.torch import load_file

        path = one.path / "pytorch_lora_weights.safetensors"
        parsed = adapters.parse(load_file(path), read_header(path).metadata)
        for module, update in parsed.adapter["unet"].items():
            target = family.denoiser.get_submodule(module).weight
            target.data += weight * lora.delta(update)
    Trained(store.resolve("word", "adapter")).put_in(family)
    for i, word in enumerate(
        line["bindings"][0]["word"]
        for line in (one.read_json("adapter.json")["concepts"][0] for one in ones)
    ):
        family.text[0].bind(f"[V0{i + 1}]", word)
    (by_hand,) = pictures(family, said, [0], Look(2, 5.0, SIZE))
    assert np.abs(np.asarray(by_hand).astype(int) - made[0]).max() <= 1
    alone, _ = paint("a [V01] dog", refs=("a",))
    each, _ = paint("a [V02] dog", "a [V01] dog")
    assert np.array_equal(each[1], alone[0]), "the other prompt's adapter is not in this one"


def test_a_word_is_not_shown_in_part_where_there_is_no_cross_attention(
    store: Store, paint: Callable[..., Any]
) -> None:
    untrained.make(store, "word", "embedding", base="tiny:sd3")
    with pytest.raises(Usage, match="no cross-attention"):
        paint("a [V01]:0.5 dog")
    with pytest.raises(Usage, match="strengths belong into the prompt"):
        paint("a [V01] dog", negative="[V01]:0.5")


def test_a_picture_names_its_adapters_as_a1111_reads_them(
    store: Store, paint: Callable[..., Any]
) -> None:
    lora = untrained.make(store, "rex", "lora", "[V02]")
    word = untrained.make(store, "mug", "embedding", "[V01]", "mug")
    _, artifact = paint(
        "a [V01]:0.6 mug and a [V02]:0.5 dog", scheduler="dpm++ 2m karras", negative="(dark:1.2)"
    )
    with Image.open(artifact.path / "000-0.png") as picture:
        text = picture.info["parameters"]
    read = infotext.parse(text)
    bound = lora.read_json("adapter.json")["concepts"][0]["bindings"][0]["word"]
    assert read.prompt == f"a (mug:0.6) mug and a {bound} dog <lora:rex:0.5>"
    assert read.negative == "(dark:1.2)"
    body = read_header(lora.path / "rex.safetensors").metadata["sshs_model_hash"]
    assert read.parameters["Lora hashes"] == f"rex: {body[:12]}"
    assert read.parameters["TI hashes"] == f"mug: {hash_file(word.path / 'mug.safetensors')[:12]}"
    assert read.parameters["Sampler"] == "DPM++ 2M"
    assert read.parameters["Schedule type"] == "Karras"
    parsers = pytest.importorskip("sd_parsers.parsers")
    info = parsers.AUTOMATIC1111Parser().parse({"parameters": text})
    (sampler,) = info.samplers
    assert (sampler.name, sampler.parameters["scheduler"]) == ("DPM++ 2M", "Karras")
    assert sampler.prompts[0].value == read.prompt
    exact = artifact.read_json("samples.json")[0]
    assert exact["prompt"] == "a [V01]:0.6 mug and a [V02]:0.5 dog"
    assert {a["name"]: a["weight"] for a in exact["adapters"]} == {"mug@v001": 1.0, "rex@v001": 0.5}


def test_a_grid_is_labelled_and_each_place_is_what_it_says(paint: Callable[..., Any]) -> None:
    grid = {"grid_x": "guidance=1,7", "grid_y": "steps=1,2"}
    made, artifact = paint("a dog", refs=("none",), base="tiny:sd", count=None, **grid)
    alone, _ = paint("a dog --guidance 7 --steps 2", refs=("none",), base="tiny:sd")
    assert np.array_equal(made[3], alone[0])
    with Image.open(artifact.path / "grid.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert pixels.shape[0] > 2 * 64 + 8 and pixels.shape[1] > 2 * 64 + 20
    assert np.array_equal(pixels[-64:, -64:], made[3])
    assert np.array_equal(pixels[-64 - 2 - 64 : -64 - 2, -64:], made[1])


def test_a_sheet_has_a_row_for_each_prompt(paint: Callable[..., Any]) -> None:
    made, artifact = paint("a dog", "a cat", refs=("none",), base="tiny:sd", count=3)
    with Image.open(artifact.path / "grid.png") as sheet:
        pixels = np.asarray(sheet).astype(int)
    assert pixels.shape == (64 * 2 + 2, 64 * 3 + 4, 3)
    assert np.array_equal(pixels[:64, :64], made[0])
    assert np.array_equal(pixels[-64:, -64:], made[5])


def test_the_same_call_has_the_same_bytes(
    store: Store, paint: Callable[..., Any], tmp_path: Path
) -> None:
    """Whatever the thread that writes is doing."""
    _, first = paint("a dog", "a cat", refs=("none",), base="tiny:sd", count=5)
    ask = stage.Run(
        Store.open(tmp_path / "other"),
        [
            Line(p, (s := Sample(steps=2, count=5, device="cpu", base="tiny:sd")))
            for p in ("a dog", "a cat")
        ],
        ("none",),
        s,
    )
    assert stage.run(ask).id == first.id


def test_an_error_of_the_writer_ends_the_run_and_leaves_nothing(
    store: Store, paint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamtune import fsops
    from dreamtune.errors import Resources

    written = []

    def full(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) == 3:
            raise Resources("cannot write", why="the disk is full")

    monkeypatch.setattr(fsops, "put", full)
    with pytest.raises(Resources, match="the disk is full"):
        paint("a dog", refs=("none",), base="tiny:sd", count=8, batch=1)
    assert store.list("samples") == [] and len(written) == 3
    assert not list(store.path.rglob("*.png"))


def test_a_writer_does_all_in_order_or_says_what_went_wrong() -> None:
    done: list[int] = []
    with Writer() as writer:
        for i in range(100):
            writer.do(lambda i=i: done.append(i))
    assert done == [*range(100)]
    with pytest.raises(ZeroDivisionError), Writer() as writer:
        writer.do(lambda: 1 // 0)
        writer.do(lambda: done.append(-1))
    assert -1 not in done
    with pytest.raises(KeyError), Writer() as writer:
        raise KeyError
