"""`dreamtune sample`: the right adapter, pictures that say how they were made, clear refusals."""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamtune.artifacts import Artifact
from dreamtune.errors import NotFound, Usage
from dreamtune.formats import infotext
from dreamtune.fsops import hash_file
from dreamtune.stages.adapters import choose
from dreamtune.store import Store
from tests import forked
from tests.conftest import draw_photo

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
    """Labels of the adapters that any of the prompts gets."""
    found = [a.label for own in choose(store, prompts, refs) for a in own]
    return list(dict.fromkeys(found))


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
    ((adapter,),) = choose(store, ["[V02] dog"], ["rex@0.8 as V02"])
    assert (adapter.weight, adapter.identifiers, adapter.step) == (0.8, ["[V02]"], None)


def test_two_adapters_answer_to_two_names(
    store: Store, make_adapter: Callable[..., Artifact]
) -> None:
    make_adapter("rex")
    make_adapter("fido")
    with pytest.raises(Usage, match=r"rex@v001 and fido@v001 both own \[V01\].*fido as V02"):
        choose(store, ["[V01] dog"], ["rex", "fido"])
    (both,) = choose(store, ["[V01] and [V02]"], ["rex", "fido as V02"])
    assert [a.identifiers for a in both] == [["[V01]"], ["[V02]"]]
    with pytest.raises(Usage, match="'V 02' cannot be an identifier"):
        choose(store, ["[V01] dog"], ["rex as V 02"])


def test_each_prompt_has_the_adapters_that_it_speaks_of(
    store: Store, make_adapter: Callable[..., Artifact]
) -> None:
    make_adapter("rex")
    make_adapter("cup", "[V02]", "mug")
    prompts = ["[V02] mug", "[V01] dog beside a [V02] mug", "[V01] dog"]
    found = [[a.name for a in own] for own in choose(store, prompts, [])]
    assert found == [["cup"], ["rex", "cup"], ["rex"]]
    assert all(len(own) == 2 for own in choose(store, prompts, ["rex", "cup"]))


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
    bound = prompt.strip().replace("[V01]", "z")
    assert (info.prompt, info.negative) == (f"{bound} <lora:dog:1>", "blur")
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


BARE = ["--with", "none", "--base", "tiny:sd", *FEW]


def test_prompts_come_from_arguments_and_a_file(tmp_path: Path) -> None:
    text = "\ufeff# mine\na cat --d 5\n\n  a dog --size 64x80\n"
    (tmp_path / "prompts.txt").write_text(text, encoding="utf-8")
    args = ["sample", "a hen", "--prompt-file", "prompts.txt", "-n", "1", *BARE, "--json"]
    assert forked.run(args, tmp_path) == 0
    folder = tmp_path / json.loads((tmp_path / "stdout").read_text())["path"]
    lines = json.loads((folder / "samples.json").read_text())
    told = [(line["prompt"], line["seed"], line["size"]) for line in lines]
    assert told == [("a hen", 0, [64, 64]), ("a cat", 5, [64, 64]), ("a dog", 0, [64, 80])]


def speak(text: str) -> None:
    """What a child finds on its stdin."""
    sys.stdin = io.StringIO(text)


def test_stdin_is_answered_line_by_line(tmp_path: Path) -> None:
    """By what the same prompt alone gives; a bad line costs itself and decides the exit code."""
    lines = "a cat --d 5\n\n# no prompt\na dog --stepps 3\na dog -- two\na cat --d 5\n"
    args = ["sample", "-", "-n", "1", *BARE]
    assert forked.run(args, tmp_path, prepare=functools.partial(speak, lines)) == 2
    first, bad, second, again = (tmp_path / "stdout").read_text().split("\n")[:4]
    assert (bad, again) == ("", first)
    assert "did you mean 'steps'" in (tmp_path / "stderr").read_text()
    with Image.open(tmp_path / first) as picture:
        assert infotext.parse(picture.info["parameters"]).parameters["Seed"] == "5"
    assert Path(second).name == "000-0.png"
    made = Artifact.load((tmp_path / first).parent)
    assert forked.run(["sample", "a cat", "--seed", "5", "-n", "1", *BARE], tmp_path) == 0
    assert (tmp_path / "stdout").read_text().strip() == str(Path(first).parent)
    assert forked.run([*args, "--json"], tmp_path, prepare=functools.partial(speak, lines)) == 2
    answers = [json.loads(line) for line in (tmp_path / "stdout").read_text().splitlines()]
    assert [a.get("code", 0) for a in answers] == [0, 2, 0, 0]
    assert answers[0]["picture"] == first and answers[0]["id"] == made.id


@pytest.mark.slow
def test_it_answers_as_soon_as_a_picture_is_there(tmp_path: Path) -> None:
    """Whoever asks may wait for the answer before asking again."""
    import subprocess

    command = [sys.executable, "-m", "dreamtune", "-q", "sample", "-", "-n", "1", *BARE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdin and process.stdout
        for prompt in ("a cat", "a dog"):
            process.stdin.write(f"{prompt}\n")
            process.stdin.flush()
            assert (tmp_path / process.stdout.readline().strip()).is_file()
        process.stdin.close()
        assert process.wait(60) == 0


def test_it_starts_from_a_picture_where_a_mask_is_white(tmp_path: Path) -> None:
    photo = draw_photo(1, (300, 150))
    photo.save(tmp_path / "photo.jpg", quality=95)
    mask = Image.new("L", (300, 150))
    mask.paste(255, (150, 0, 300, 150))
    mask.save(tmp_path / "mask.png")
    args = ["sample", "a cat", "-n", "1", *BARE, "--init", "photo.jpg", "--mask", "mask.png"]
    assert forked.run([*args, "--strength", "1", "--out", "o.png"], tmp_path) == 0
    with Image.open(tmp_path / "o.png") as picture:
        assert infotext.parse(picture.info["parameters"]).parameters["Denoising strength"] == "1"
        made = np.asarray(picture).astype(int)
    assert made.shape[1] > 1.5 * made.shape[0]  # the picture's own aspect
    scaled = np.asarray(photo.resize(made.shape[1::-1])).astype(int)
    half = made.shape[1] // 2 - 8
    assert np.abs(made - scaled)[:, :half].mean() < 10 < np.abs(made - scaled)[:, -half:].mean()
    (folder,) = (tmp_path / "artifacts/samples").glob("*/v001")
    kept = (folder / "samples.json").read_text() + (folder / "manifest.json").read_text()
    assert "photo.jpg" not in kept and hash_file(tmp_path / "photo.jpg") in kept


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
        (["-", "--out", "x.png"], 2, ["--out is for one picture"]),
        (["x", "-"], 2, ["- stands alone"]),
        (["x", "--mask", "m.png"], 2, ["--mask needs the picture"]),
        (["x", "--init", "no.png"], 10, ["no picture no.png"]),
        (["x", "--init", "bad.png"], 2, ["bad.png cannot be used", "image."]),
        (["x", "--with", "none", "--scheduler", "eulr"], 2, ["did you mean 'euler'"]),
        (["x", "--with", "none", "--grid-x", "step=3"], 2, ["did you mean 'steps'"]),
        (["[V01]:3 dog", "--with", "none"], 2, ["at most 2"]),
    ],
)
def test_a_wrong_start_is_one_clear_line(
    args: list[str], code: int, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert forked.run(["sample", *args], tmp_path) == code
    lines = (tmp_path / "stderr").read_text().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), lines
