"""Settings of their own by line and by place in a grid, and what is then made of adapters."""

from __future__ import annotations

import pytest

from dreamtune.errors import Usage
from dreamtune.settings import Sample
from dreamtune.stages.adapters import Adapter, choose
from dreamtune.stages.axes import Axis
from dreamtune.stages.lines import Line, is_prompt
from dreamtune.stages.scenes import Scene, plan
from dreamtune.store import Store
from tests import untrained


def scenes(
    *lines: Line, sample: Sample | None = None, adapters: tuple[Adapter, ...] = ()
) -> list[Scene]:
    sample = sample or Sample()
    axes = Axis.read(sample.grid_x, sample), Axis.read(sample.grid_y, sample)
    return plan(lines, [adapters] * len(lines), *axes)


@pytest.mark.parametrize(
    "text",
    [
        "a dog --w 512 --h 768 --d 7 --s 30 --l 6 --n blurry, dark --ss euler_a",
        "a dog --size 512x768 --seed 7 --steps 30 --cfg-scale 6 --negative blurry, dark "
        "--sampler euler_a",
        "  a dog   --negative-prompt blurry, dark --D 7 --guidance 6 --num-inference-steps 30 "
        "--scheduler euler_a --h 768 --w 512",
    ],
)
def test_a_line_has_settings_as_in_sd_scripts_or_ours(text: str) -> None:
    line = Line.read(text, Sample(count=2, steps=10))
    assert line.prompt == "a dog"
    assert line.sample == Sample(
        count=2,
        steps=30,
        seed=7,
        guidance=6.0,
        size="512x768",
        negative="blurry, dark",
        scheduler="euler_a",
    )


def test_words_with_dashes_stay_words() -> None:
    line = Line.read("a black-and-white dog -- running --steps 3", Sample())
    assert (line.prompt, line.sample.steps) == ("a black-and-white dog -- running", 3)
    assert [is_prompt(text) for text in ("a", " # a", "", "  ")] == [True, False, False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a --stepps 3", "did you mean 'steps'"),
        ("a --steps", "--steps has no value"),
        ("a --steps 0", "--steps 0: must be at least 1"),
        ("a --steps 3 --s 4", "--s is there twice"),
        ("a --w 64", "--w or --h, and not both"),
        ("a --device cpu", "no setting that a picture can have of its own"),
        ("a --size big", "512x768"),
    ],
)
def test_a_line_that_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(Usage, match=words):
        Line.read(text, Sample())


def test_each_line_has_its_pictures() -> None:
    sample = Sample(count=2, seed=5)
    made = scenes(
        Line("a", sample), Line.read("b --count 1 --seed 9 --steps 3", sample), sample=sample
    )
    assert [(s.file, s.prompt, s.sample.steps) for s in made] == [
        ("000-5.png", "a", 25),
        ("000-6.png", "a", 25),
        ("001-9.png", "b", 3),
    ]
    assert len(scenes(Line("a", Sample()))) == 4


def test_a_grid_has_a_picture_for_each_place() -> None:
    sample = Sample(grid_x="guidance=3, 7", grid_y="seed=1,2,4")
    made = scenes(Line("a", sample), sample=sample)
    assert [(s.file, s.sample.guidance, s.seed) for s in made] == [
        ("000-1-0-0.png", 3.0, 1),
        ("000-1-0-1.png", 7.0, 1),
        ("000-2-1-0.png", 3.0, 2),
        ("000-2-1-1.png", 7.0, 2),
        ("000-4-2-0.png", 3.0, 4),
        ("000-4-2-1.png", 7.0, 4),
    ]
    twice = Sample(grid_x="scheduler=ddim,dpm++ 2m karras", count=2)
    assert [s.file for s in scenes(Line("a", twice), sample=twice)] == [
        "000-0-0-0.png",
        "000-0-0-1.png",
        "000-1-0-0.png",
        "000-1-0-1.png",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("guidance", "write guidance=3,5,7"),
        ("guidance=", "write guidance=3,5,7"),
        ("guidence=3", "did you mean 'guidance'"),
        ("steps=3,x", "--steps x: must be a whole number"),
        ("count=2", "one picture in each place"),
        ("scheduler=ddim,eluer", "did you mean 'euler'"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(text: str, words: str) -> None:
    sample = Sample(grid_x=text)
    with pytest.raises(Usage, match=words):
        scenes(Line("a", sample), sample=sample)


def test_how_strongly_concepts_show(store: Store) -> None:
    untrained.make(store, "rex", "lora")
    untrained.make(store, "mug", "embedding", "[V02]", "mug")
    ((rex, mug),) = choose(store, ["[V01] dog, [V02] mug"], ["rex@0.5", "mug"])

    def made(prompt: str, weight: float = 1.0) -> tuple[list[float], dict[str, float]]:
        sample = Sample(weight=weight, count=1)
        (scene,) = scenes(Line(prompt, sample), sample=sample, adapters=(rex, mug))
        return [a.weight for a in scene.adapters], dict(scene.words)

    assert made("[V01] dog, [V02] mug") == ([0.5, 1.0], {"[V01] dog, [V02] mug": 1.0})
    assert made("[V01]:0.5 dog") == ([0.25, 1.0], {"[V01] dog": 0.5, "dog": 0.5})
    assert made("[V01]:0 dog") == ([0.0, 1.0], {"dog": 1.0})
    # A LoRA is scaled; a word has nothing to scale, and so its weight is its strength.
    assert made("[V02] mug", 0.5) == ([0.25, 1.0], {"[V02] mug": 0.5, "mug": 0.5})
    assert made("[V01] dog, [V02]:0.5 mug") == (
        [0.5, 1.0],
        {"[V01] dog, [V02] mug": 0.5, "[V01] dog, mug": 0.5},
    )
