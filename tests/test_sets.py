"""Several sets of photos in one run: which, under which name, how often."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamtune.artifacts import Artifact
from dreamtune.errors import Usage
from dreamtune.stages.sets import find
from dreamtune.store import Store
from tests import forked

TINY = ["--base", "tiny:sd", "--steps", "3", "--batch", "2", "--device", "cpu"]


def test_what_a_reference_says(store: Store, make_prep: Callable[..., Artifact]) -> None:
    make_prep("rex")
    make_prep("tom", class_word="cat")
    rex, tom = find(store, ["rex@repeats=3", "tom@0.5 as V02"])
    assert (rex.identifier, rex.class_word, rex.repeats, rex.weight) == ("[V01]", "dog", 3, 1.0)
    assert (tom.identifier, tom.class_word, tom.repeats, tom.weight) == ("[V02]", "cat", 1, 0.5)
    assert {s.caption for s in tom.samples()} == {"a photo of [V02] cat"}
    assert {s.weight for s in tom.samples()} == {0.5}
    (newest,) = find(store, [])
    assert newest.prep.label == "tom@v001"


@pytest.mark.parametrize(
    ("refs", "words"),
    [
        (["rex", "tom"], "are both \\[V01\\]"),
        (["rex@repeats=0"], "1 to 10,000"),
        (["rex@times=2"], "there is @repeats="),
        (["rex@0"], "above 0"),
        (["rex as V 2"], "letters and digits"),
    ],
)
def test_what_cannot_be_meant(
    refs: list[str], words: str, store: Store, make_prep: Callable[..., Artifact]
) -> None:
    make_prep("rex")
    make_prep("tom", class_word="cat")
    with pytest.raises(Usage, match=words):
        find(store, refs)


def test_more_photos_of_the_same(store: Store, make_prep: Callable[..., Artifact]) -> None:
    make_prep("rex")
    make_prep("rex-outdoors")
    assert {s.identifier for s in find(store, ["rex", "rex-outdoors as V01"])} == {"[V01]"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "embedding"])
def test_two_concepts_in_one_adapter(
    method: str, make_prep: Callable[..., Artifact], tmp_path: Path
) -> None:
    make_prep("rex")
    make_prep("tom", class_word="cat")
    train = ["train", "rex", "tom as V02", "--method", method, *TINY]
    assert forked.run(train, tmp_path) == 0, (tmp_path / "stderr").read_text()
    adapter = Store.open(tmp_path / "artifacts").newest("adapter")
    assert adapter and adapter.name == "rex+tom"
    known = [
        (c["identifier"], c["class_word"]) for c in adapter.read_json("adapter.json")["concepts"]
    ]
    assert known == [("[V01]", "dog"), ("[V02]", "cat")]
    sample = ["sample", "[V01] dog and [V02] cat", "-n", "1", "--steps", "2", "--json"]
    assert forked.run(sample, tmp_path) == 0, (tmp_path / "stderr").read_text()
    samples = Path(json.loads((tmp_path / "stdout").read_text())["path"])
    used = json.loads((tmp_path / samples / "samples.json").read_text())[0]["adapters"]
    assert [(a["name"], a["identifiers"]) for a in used] == [("rex+tom@v001", ["[V01]", "[V02]"])]
    assert forked.run([*sample[:1], "[V01] dog", "--with", "rex+tom as V07"], tmp_path) == 2
    assert "has 2 concepts" in (tmp_path / "stderr").read_text()
