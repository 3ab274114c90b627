"""`dreamtune sample`: the right adapter, pictures that say how they were made, clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamtune.artifacts import Artifact, Store
from dreamtune.errors import NotFound, Usage
from dreamtune.formats import infotext
from dreamtune.stages.adapters import choose
from dreamtune.stages.sample import grid
from tests import forked

FEW = ["--steps", "2", "--device", "cpu"]


@pytest.fixture
def make_adapter(store: Store) -> Callable[..., Artifact]:
    """An adapter artifact that says whose it is and holds nothing."""
    from dreamtune import fsops

    def make(name: str, identifier: str = "[V01]", class_word: str = "dog", n: int = 0) -> Artifact:
        recipe = {"name": name, "identifier": identifier, "class": class_word, "n": n}
        key = store.key("adapter", 1, recipe, [])
        with store.draft("adapter", name, key, recipe, []) as draft:
            concepts = [{"identifier": identifier, "class_word": class_word, "bindings": []}]
            facts = {"concepts": concepts, "steps": 9, "n": n}
            fsops.write_json(draft.path / "adapter.json", facts)
            return draft.commit({})

    return make


def names(store: Store, *prompts: str, refs: tuple[str, ...] = ()) -> list[str]:
    return [a.artifact.label for a in choose(store, prompts, refs)]


def test_the_newest_that_owns_the_identifier(
    store: Store, make_adapter: Callable[..., Artifact]
) -> None:
    first = make_adapter("rex")
    make_adapter("rex", n=1)
    assert names(store, "[V01] dog in the snow") == ["rex@v002"]
    store.reuse(first)  # what a repeated command returned is the newest
    assert names(store, "[V01] dog") == ["rex@v001"]


def test_the_class_word_decides_between_two_owners(
    store: Store, make_adapter: Callable[..., Artifact]
) -> None:
    make_adapter("rex")
    make_adapter("cup", class_word="mug")
    assert names(store, "[V01] mug on a table") == ["cup@v001"]
    assert names(store, "[V01] dog") == ["rex@v001"]
    with pytest.raises(Usage, match=r"cup or rex.*--with cup"):
        choose(store, ["[V01] in the snow"], [])
    assert names(store, "[V01] in the snow", refs=("rex",)) == ["rex@v001"]


def test_two_differently_named_owners_are_not_guessed_between(
    store: Store, make_adapter: Callable[..., Artifact]
) -> None:
    make_adapter("rex")
    make_adapter("fido")
    with pytest.raises(Usage, match="fido or rex"):
        choose(store, ["[V01] dog"], [])


def test_two_concepts_in_one_prompt(store: Store, make_adapter: Callable[..., Artifact]) -> None:
    make_adapter("rex")
    make_adapter("cup", "[V02]", "mug")
    assert names(store, "[V01] dog next to a [V02] mug") == ["rex@v001", "cup@v001"]


def test_a_reference_has_weight_and_another_name(
    store: Store, make_adapter: Callable[..., Artifact]
) -> None:
    make_adapter("rex")
    (adapter,) = choose(store, ["[V02] dog"], ["rex@0.8 as V02"])
    assert (adapter.weight, adapter.identifiers, adapter.step) == (0.8, ["[V02]"], None)


def test_two_adapters_answer_to_two_names(
    store: Store, make_adapter: Callable[..., Artifact]
) -> None:
    make_adapter("rex")
    make_adapter("fido")
    with pytest.raises(Usage, match=r"rex@v001 and fido@v001 both own \[V01\].*fido as V02"):
        choose(store, ["[V01] dog"], ["rex", "fido"])
    both = choose(store, ["[V01] and [V02]"], ["rex", "fido as V02"])
    assert [a.identifiers for a in both] == [["[V01]"], ["[V02]"]]
    with pytest.raises(Usage, match="'V 02' cannot be an identifier"):
        choose(store, ["[V01] dog"], ["rex as V 02"])


def test_what_cannot_be_found(store: Store, make_adapter: Callable[..., Artifact]) -> None:
    make_adapter("rex")
    with pytest.raises(NotFound, match=r"no adapter owns \[V09\].*\[V01\] dog"):
        choose(store, ["[V09] dog"], [])
    with pytest.raises(Usage, match="no identifier"):
        choose(store, ["a dog"], [])
    with pytest.raises(NotFound, match="did you mean"):
        choose(store, ["[V01] dog"], ["rxe"])
    with pytest.raises(NotFound, match="no step 3"):
        choose(store, ["[V01] dog"], ["rex@step=3"])


def test_the_grid_has_a_row_for_each_prompt() -> None:
    tiles = [[Image.new("RGB", (64, 32), (r, c, 0)) for c in range(3)] for r in range(2)]
    sheet = np.asarray(grid(tiles))
    assert sheet.shape == (32 * 2 + 2, 64 * 3 + 4, 3)
    assert sheet[0, 0].tolist() == [0, 0, 0] and sheet[-1, -1].tolist() == [1, 2, 0]
    assert grid([tiles[0] + tiles[1]]).size[0] < 64 * 6


@pytest.mark.slow
def test_from_photos_to_pictures(make_prep: Callable[..., Artifact], tmp_path: Path) -> None:
    make_prep()
    tiny = ["train", "--base", "tiny:sd", "--batch", "2", "--steps", "4", "--save-every", "2"]
    assert forked.run([*tiny, "--learning-rate", "0.1", "--device", "cpu"], tmp_path) == 0
    prompt = 'a "[V01] dog", quoted: Steps: 3\n'
    args = ["sample", prompt, "[V01] dog", "-n", "2", "--seed", "7", "--negative", "blur", *FEW]
    assert forked.run([*args, "--json"], tmp_path) == 0, (tmp_path / "stderr").read_text()
    said = json.loads((tmp_path / "stdout").read_text())
    assert [Path(p).name for p in said["images"]] == [
        f"{i:03d}-{s}.png" for i in (0, 1) for s in (7, 8)
    ]
    with Image.open(tmp_path / said["images"][1]) as picture:
        assert picture.size == (64, 64)
        info = infotext.parse(picture.info["parameters"])
    # Other tools get the bound word, for they read brackets as weights; our JSON what was typed.
    assert (info.prompt, info.negative) == (prompt.strip().replace("[V01]", "z"), "blur")
    folder = tmp_path / said["path"]
    assert json.loads((folder / "samples.json").read_text())[0]["prompt"] == prompt.strip()
    assert info.parameters["Seed"] == "8" and info.parameters["Size"] == "64x64"

    # Each picture depends on its own seed and nothing else.
    alone = ["sample", "[V01] dog", "-n", "1", "--seed", "8", "--negative", "blur", *FEW]
    assert forked.run([*alone, "--out", "one.png"], tmp_path) == 0
    assert (tmp_path / "stdout").read_text() == "one.png\n"
    one, among = (
        np.asarray(Image.open(p)).astype(int)
        for p in (tmp_path / "one.png", tmp_path / said["images"][3])
    )
    assert np.abs(one - among).max() <= 1
    assert forked.run([*alone, "--out", "one.png"], tmp_path) == 17

    # Weight 0 is the base itself; a kept step is another adapter than the last.
    def picture(*refs: str) -> np.ndarray:
        assert forked.run([*alone, *refs, "--out", "p.png", "--force"], tmp_path) == 0
        return np.asarray(Image.open(tmp_path / "p.png")).astype(int)

    assert np.abs(picture("--with", "dog@0.0") - one).max() > 0
    assert np.abs(picture("--with", "dog@step=2") - one).max() > 0
    assert np.array_equal(picture("--with", "dog@step=4"), one)


@pytest.mark.slow
def test_diffusers_loads_ours_and_gives_the_same_pictures(
    make_prep: Callable[..., Artifact], tmp_path: Path
) -> None:
    """Through load_lora_weights and load_textual_inversion, from the artifact's own folder."""
    import torch

    from dreamtune import families

    make_prep()
    prompts = {"lora": "a z dog", "embedding": "a <embedding-v01> dog"}
    for method, theirs in prompts.items():
        tiny = ["train", "--base", "tiny:sd", "--batch", "2", "--steps", "4", "--name", method]
        args = [*tiny, "--method", method, "--learning-rate", "0.1", "--device", "cpu"]
        assert forked.run(args, tmp_path) == 0
        ours = ["sample", "a [V01] dog", "--with", method, "-n", "1", *FEW, "--out", "o.png", "-f"]
        assert forked.run(ours, tmp_path) == 0
        folder = Store.open(tmp_path / "artifacts").resolve(method, "adapter").path
        pipeline = families.load("tiny:sd", torch.float32).pipeline()
        if method == "lora":
            pipeline.load_lora_weights(folder)
        else:
            pipeline.load_textual_inversion(folder / "learned_embeds.safetensors")
        generator = [torch.Generator().manual_seed(0)]
        arguments = {"num_inference_steps": 2, "guidance_scale": 5.0, "generator": generator}
        picture = call(pipeline, theirs, arguments)
        assert np.abs(picture - np.asarray(Image.open(tmp_path / "o.png")).astype(int)).max() <= 1


def call(pipeline: object, prompt: str, arguments: dict) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    (picture,) = pipeline(prompt, width=64, height=64, **arguments).images  # type: ignore[operator]
    return np.asarray(picture).astype(int)


def test_prompts_come_from_arguments_a_file_and_stdin(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\ufeffa cat\n\n  a dog \n", encoding="utf-8")
    args = ["sample", "a hen", "--prompt-file", "prompts.txt", "--with", "none", "-n", "1"]
    assert forked.run([*args, "--base", "tiny:sd", *FEW, "--json"], tmp_path) == 0
    folder = tmp_path / json.loads((tmp_path / "stdout").read_text())["path"]
    lines = json.loads((folder / "samples.json").read_text())
    assert [line["prompt"] for line in lines] == ["a hen", "a cat", "a dog"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, ["no prompt"]),
        (["[V01] dog"], 10, ["no adapter owns [V01]", "train"]),
        (["a dog"], 2, ["no identifier", "--with none"]),
        (["x", "--with", "none", "--size", "big"], 2, ["size", "512x768"]),
        (["x", "--with", "none", "--base", "tiny:sd", "--size", "70"], 2, ["multiples of 16"]),
        (["x", "--with", "none", "--base", "tiny:sd", "--size", "00"], 2, ["multiples of 16"]),
        (["x", "--with", "none", "--out", "x.jpg"], 2, [".png"]),
        (["x", "--with", "none", "--out", "no/x.png"], 10, ["no folder no"]),
        (["x", "--prompt-file", "no.txt"], 10, ["no.txt"]),
        (["x", "-n", "0"], 2, ["--count 0"]),
    ],
)
def test_a_wrong_start_is_one_clear_line(
    args: list[str], code: int, words: list[str], tmp_path: Path
) -> None:
    assert forked.run(["sample", *args], tmp_path) == code
    lines = (tmp_path / "stderr").read_text().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), lines
