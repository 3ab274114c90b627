"""Captions: every common layout is read, and nothing that is wrong with one passes in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreamtune.data import captions, kohya, sidecars, texts, walk
from dreamtune.data.captions import Concept, Wording
from dreamtune.errors import Unsafe, Usage

DOG = Concept("[V01]", "dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "photos"
    made.mkdir()
    for name in ("a.jpg", "b.png", "c.webp"):
        (made / name).write_bytes(b"x")
    return made


def read(folder: Path, ending: str | None = None) -> dict[str, str]:
    found = walk.find(folder)
    return sidecars.read(found.photos, found.texts, found.paths, ending)


def test_each_kind_of_sidecar(folder: Path) -> None:
    (folder / "a.txt").write_text("one\r\ntwo\n")
    (folder / "b.png.caption").write_text("bee")
    (folder / "c.json").write_text(json.dumps({"tags": [1], "caption": "sea"}))
    (folder / "stranger.txt").write_text("nobody's")
    assert read(folder) == {"a.jpg": "one two", "b.png": "bee", "c.webp": "sea"}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("a dog’s toy – café", "utf-8"),
        ("a dog’s toy – café", "utf-8-sig"),
        ("a dog’s toy – café", "utf-16"),
        ("a dog’s toy – café", "utf-16-le"),
        ("a dog’s toy – café", "utf-16-be"),
        ("a dog’s toy – café", "utf-32"),
        ("a dog’s toy – café", "cp1252"),
        ("Müllers Hündin läuft über die Straße", "cp1252"),
        ("犬のおもちゃ、赤いボール", "cp932"),
        ("青い空の下で走る犬の写真です", "cp932"),
        ("一只红色的狗在草地上奔跑", "gb18030"),
        ("a photo of 红色的玩具 on grass", "gb18030"),
        ("рыжая собака бежит по траве", "cp1251"),
    ],
)
def test_encodings_are_told_apart(text: str, encoding: str) -> None:
    assert texts.decode(text.encode(encoding)) == text


def test_what_terminals_and_models_must_not_see_is_removed() -> None:
    dirty = "a \x1b[31mred\x1b[0m dog\0 \u202eevil\u202c\u200b\ttail\n"
    assert texts.clean(dirty) == "a red dog evil tail"
    assert texts.clean("👩\u200d🚀 cafe\u0301") == "👩\u200d🚀 café"


def test_binary_is_no_caption(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"\x00\x01\x02\xff\xfe\xfd\x00\x80\x81")
    with pytest.raises(Usage, match=r"a\.txt is in an unknown encoding"):
        read(folder)


def test_empty_captions_are_missing(folder: Path) -> None:
    (folder / "a.txt").write_text(" \n\t")
    (folder / "b.txt").write_text("bee")
    assert read(folder) == {"b.png": "bee"}


def test_a_shared_caption_is_refused(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"x")
    (folder / "a.txt").write_text("which?")
    with pytest.raises(Usage, match=r"a\.txt would be the caption of a\.jpg and a\.png"):
        read(folder)


def test_two_captions_are_refused_unless_one_is_chosen(folder: Path) -> None:
    (folder / "a.txt").write_text("text")
    (folder / "a.caption").write_text("caption")
    with pytest.raises(Usage, match="choose with --caption-ext"):
        read(folder)
    assert read(folder, "caption") == {"a.jpg": "caption"}


def test_the_wrong_ending_names_the_right_one(folder: Path) -> None:
    for stem in "abc":
        (folder / f"{stem}.caption").write_text("words")
    with pytest.raises(Usage, match=r"0 of 3 captions found with \.txt: 3 found with \.caption"):
        read(folder, ".txt")


@pytest.mark.parametrize("field", ["text", "caption", "prompt"])
def test_metadata_lines(folder: Path, field: str) -> None:
    rows = [{"file_name": name, field: name, "extra": [1]} for name in ("a.jpg", "./b.png")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(folder) == {"a.jpg": "a.jpg", "b.png": "./b.png"}


def test_metadata_tables_and_subfolders(folder: Path) -> None:
    below = folder / "more"
    below.mkdir()
    (below / "d.jpg").write_bytes(b"x")
    (below / "metadata.csv").write_text('file_name,text\nd.jpg,"two\nlines, ""quoted"""\n')
    (folder / "metadata.csv").write_text("file_name,text\na.jpg,first\n")
    assert read(folder) == {"a.jpg": "first", "more/d.jpg": 'two lines, "quoted"'}


@pytest.mark.parametrize(
    ("lines", "error", "said"),
    [
        (['{"file_name": "a.jpg", "text": "x"}', "{bad"], Usage, "line 2 is not valid JSON"),
        (["[1]"], Usage, "line 1 is not an object"),
        (['{"text": "x"}'], Usage, "line 1: no file_name"),
        (['{"file_name": "z.jpg", "text": "x"}'], Usage, "line 1: there is no photo 'z.jpg'"),
        (['{"file_name": "a.jpg", "text": "x"}'] * 2, Usage, "line 2: 'a.jpg' was already"),
        (['{"file_name": "../a.jpg", "text": "x"}'], Unsafe, "leads out of the folder"),
        (['{"file_name": "/etc/a.jpg", "text": "x"}'], Unsafe, "leads out of the folder"),
        (['{"file_name": "C:\\\\a.jpg", "text": "x"}'], Unsafe, "leads out of the folder"),
        (["[" * 100_000], Usage, "line 1"),
    ],
)
def test_metadata_errors_have_their_line(
    folder: Path, lines: list[str], error: type[Exception], said: str
) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    with (
        pytest.raises(error, match=r"metadata\.jsonl " + said.replace(".", r"\."))
        if (error is Usage)
        else pytest.raises(error, match=said)
    ):
        read(folder)


def test_metadata_and_a_sidecar_that_differ_are_refused(folder: Path) -> None:
    (folder / "a.txt").write_text("one")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "two"}\n')
    with pytest.raises(Usage, match=r"captions in a\.txt and in metadata\.jsonl line 1"):
        read(folder)


def test_composed_and_decomposed_names_meet(tmp_path: Path) -> None:
    (tmp_path / "cafe\u0301.jpg").write_bytes(b"x")
    (tmp_path / "caf\u00e9.txt").write_text("coffee")
    assert read(tmp_path) == {"cafe\u0301.jpg": "coffee"}


def test_templates() -> None:
    assert captions.fill("a photo of {identifier} {class}", DOG) == "a photo of [V01] dog"
    assert captions.fill("{{x}} {class}", DOG) == "{x} dog"
    with pytest.raises(Usage, match="did you mean 'class'"):
        captions.fill("{clas}", DOG)
    with pytest.raises(Usage, match="cannot be read"):
        captions.fill("{class", DOG)


def test_templates_take_turns() -> None:
    drawing = Concept("[V01]", "drawing", "style")
    photos = [f"{i}.jpg" for i in range(8)]
    wording = Wording(captions.TEMPLATES["style"])
    made = list(captions.compose(photos, {}, dict.fromkeys(photos, drawing), wording).values())
    assert made[0] == made[7] == "a drawing in the style of [V01]"
    assert len(set(made)) == 7 and all("[V01]" in caption for caption in made)


def test_edits_and_what_is_missing() -> None:
    concepts = dict.fromkeys(["a", "b"], DOG)
    wording = Wording(["{class}"], "template", "[V01] ", ", ok", [("red", "blue"), ("blue b", "b")])
    assert captions.compose(["a", "b"], {"a": "red ball"}, concepts, wording) == {
        "a": "[V01] ball, ok",
        "b": "[V01] dog, ok",
    }
    empty = captions.compose(["a", "b"], {"a": "x"}, concepts, Wording(["{class}"], "empty"))
    assert empty == {"a": "x", "b": ""}
    with pytest.raises(Usage, match=r"1 of 2 photos have no caption \(b\)"):
        captions.compose(["a", "b"], {"a": "x"}, concepts, Wording(["{class}"]))
    with pytest.raises(Usage, match="'old=>new'"):
        captions.replacements(["old->new"])


def test_doubts() -> None:
    assert captions.doubts({"a": "a [V01]"}, "[V01]") == []
    assert "no caption has [V01]" in captions.doubts({"a": "a dog"}, "[V01]")[0]
    some = captions.doubts({"a": "a dog", "b": "[V01] " + "very " * 60}, "[V01]")
    assert [remark.split()[0] for remark in some] == ["1", "1"]


@pytest.mark.parametrize(
    ("name", "repeats", "words"),
    [("10_sks dog", 10, "sks dog"), ("1_dog", 1, "dog"), ("007_a_b c", 7, "a_b c")],
)
def test_kohya_names(name: str, repeats: int, words: str) -> None:
    assert kohya.subset(name) == kohya.Subset(repeats, words)


def test_kohya_names_that_are_none() -> None:
    for name in ("dog", "1e9_x", "-3_x", "_x", "x_10"):
        assert kohya.subset(name) is None
    for name in ("0_x", "10_", "99999999_x"):
        with pytest.raises(Usage, match=name):
            kohya.subset(name)
    assert kohya.by_folder(["a.jpg", "-3_x/b.jpg"], "photos") == {}
    with pytest.raises(Usage, match=r"'-3_x', 'photos'"):
        kohya.by_folder(["a.jpg", "-3_x/b.jpg", "5_y/c.jpg"], "photos")
    assert kohya.split("sks small dog") == ("sks", "small dog")
    assert kohya.split("dog") == ("", "dog")


def test_a_dataset_file_says_what_is_wrong(tmp_path: Path) -> None:
    for tables, said in (
        ({}, "names no image folder"),
        ({"datasets": [{"subsets": [{}]}]}, "no image_dir"),
        ({"datasets": [{"subsets": [{"image_dir": "x", "num_repeats": 0}]}]}, "num_repeats"),
    ):
        with pytest.raises(Usage, match=said):
            kohya.sources(tables, tmp_path)
