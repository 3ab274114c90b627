"""prep as a whole: real files in a real folder, through the stage and the command line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dreamtune import cli
from dreamtune.artifacts import Artifact
from dreamtune.data import decode
from dreamtune.errors import NotFound, Usage
from dreamtune.settings import Prep
from dreamtune.stages import prep as stage
from dreamtune.store import Store

from .drawn import clock, encoded, picture

DOG = Prep(class_word="clock")


def lines(artifact: Artifact | None, file: str) -> list[dict[str, Any]]:
    assert artifact is not None
    return [json.loads(line) for line in (artifact.path / file).read_text().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def at_once(work: Any, jobs: Any, **limits: Any) -> Any:
    """decode.run without processes, which take longer to start than these photos to decode."""
    for job in jobs:
        yield job, decode._attempt(work, job)


@pytest.fixture(autouse=True)
def in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "processes" not in request.keywords:
        monkeypatch.setattr(decode, "run", at_once)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my clock"
    folder.mkdir()
    for seed in range(5):
        clock(seed).save(folder / f"{seed}.jpg", quality=92)
    return folder


TROUBLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.jpg": (lambda: encoded(clock(1))[:-900], "image.truncated"),
    "page.jpg": (lambda: b"<html>404</html>", "image.type"),
    "empty.jpg": (lambda: b"", "image.empty"),
    "tiny.png": (lambda: encoded(picture(1, (20, 20)), "PNG"), "image.too_small"),
    "long.png": (lambda: encoded(picture(1, (900, 90)), "PNG"), "image.aspect"),
    "black.png": (lambda: encoded(Image.new("RGB", (300, 300)), "PNG"), "image.blank"),
    "other.jpg": (lambda: encoded(picture(7, (320, 240))), "similarity.low"),
    "twin.jpg": (lambda: encoded(clock(0).resize((200, 200)), quality=60), "image.near_duplicate"),
    "mirror.jpg": (lambda: encoded(clock(2).transpose(0), quality=70), "image.near_duplicate"),
    "same.jpg": (lambda: encoded(clock(3), quality=92), "image.duplicate"),
    "shaken.jpg": (
        lambda: encoded(clock(11).filter(ImageFilter.GaussianBlur(7))),
        "image.blurred",
    ),
    "-rf $(id)\n.jpg": (lambda: b"GIF", "image.type"),
    "\udcff\udcfe.jpg": (lambda: b"%PDF-1.4", "image.type"),
}


@pytest.mark.processes
def test_a_folder_with_every_kind_of_trouble(photos: Path, store: Store) -> None:
    for name, (make, _) in TROUBLE.items():
        (photos / name).write_bytes(make())
    os.mkfifo(photos / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(photos / "socket.jpg"))
    (photos / "up").symlink_to(photos)
    (photos / "gone.jpg").symlink_to(photos / "nowhere")
    (photos / "outside.jpg").symlink_to("/etc/hostname")
    (photos / ".DS_Store").write_bytes(b"junk")
    (photos / "._0.jpg").write_bytes(b"junk")
    before = tree(photos)
    artifact, outcome = stage.run(photos, DOG, store)
    assert artifact is not None
    assert artifact.check(deep=True)
    assert [s["source"] for s in outcome.samples] == [f"{n}.jpg" for n in range(5)]
    codes = {r["file"]: r["code"] for r in outcome.rejected}
    expected = {name: code for name, (_, code) in TROUBLE.items()}
    expected |= {"pipe.jpg": "file.special", "socket.jpg": "file.special", "up": "file.link"}
    expected |= {"gone.jpg": "file.unreadable", "outside.jpg": "file.link"}
    assert codes == expected
    assert lines(artifact, "rejected.jsonl") == outcome.rejected
    assert len(list((artifact.path / "images").iterdir())) == 5
    assert tree(photos) == before


def test_what_the_artifact_holds(photos: Path, store: Store) -> None:
    artifact, _ = stage.run(photos, DOG, store)
    assert artifact is not None
    assert artifact.label == "my-clock@v001"
    assert artifact.read_json("concept.json") == {
        "identifier": "[V01]",
        "class_word": "clock",
        "kind": "subject",
    }
    for sample in lines(artifact, "samples.jsonl"):
        data = (artifact.path / sample["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sample["sha256"]
        assert list(Image.open(io.BytesIO(data)).size) == sample["size"] == [320, 320]
        assert sample["caption"] == "a photo of [V01] clock"
        x0, y0, x1, y1 = sample["focus"]
        assert 0 <= x0 < 0.5 < x1 <= 1
        assert 0 <= y0 < 0.5 < y1 <= 1
        assert sample["similarity"] > 0.75
        assert sample["weight"] == 1.0
    everything = b"".join(tree(artifact.path).values())
    assert str(photos.parent).encode() not in everything
    with Image.open(artifact.path / "contact.png") as sheet:
        assert sheet.size[0] > 500


def test_the_same_folder_gives_the_same_artifact(
    photos: Path, store: Store, tmp_path: Path
) -> None:
    first, _ = stage.run(photos, DOG, store)
    moved = shutil.move(photos, tmp_path / "elsewhere")
    again, outcome = stage.run(Path(moved), DOG, store)
    other, _ = stage.run(
        Path(moved), Prep(class_word="clock", workers=1), Store.open(tmp_path / "b")
    )
    assert first is not None and again is not None and other is not None
    assert first.path == again.path
    assert outcome.reused
    assert other.id == first.id
    (Path(moved) / "5.jpg").write_bytes(encoded(clock(5)))
    changed, _ = stage.run(Path(moved), DOG, store, "my-clock")
    assert changed is not None
    assert changed.label == "my-clock@v002"


def test_a_killed_run_goes_on(
    photos: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamtune.data import album

    monkeypatch.setattr(album, "CHUNK", 2)
    whole, _ = stage.run(photos, DOG, Store.open(tmp_path / "whole"))
    remember, seen = album._remember, []

    def die(file: Path, *rest: Any) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(file.name)
        remember(file, *rest)

    monkeypatch.setattr(album, "_remember", die)
    with pytest.raises(KeyboardInterrupt):
        stage.run(photos, DOG, store)
    monkeypatch.setattr(album, "_remember", lambda *args: (seen.append("more"), remember(*args)))
    resumed, _ = stage.run(photos, DOG, store)
    assert whole is not None and resumed is not None
    assert seen == ["000000.safetensors", "000001.safetensors", "more"]
    assert resumed.id == whole.id


def test_no_folder_nothing_in_it_and_one_photo(tmp_path: Path, store: Store) -> None:
    with pytest.raises(NotFound, match="no folder"):
        stage.run(tmp_path / "nowhere", DOG, store)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Usage, match="no photos"):
        stage.run(empty, DOG, store)
    with pytest.raises(Usage, match="is a file"):
        stage.run(Path(__file__), DOG, store)
    with pytest.raises(Usage, match="'' cannot be a name"):
        stage.run(empty, DOG, store, name="", dry_run=True)
    for n in range(3):
        (empty / f"{n}.jpg").write_text("words")
    with pytest.raises(Usage, match="no photo is left: all 3"):
        stage.run(empty, DOG, store)
    clock(1).save(empty / "one.jpg")
    _, outcome = stage.run(empty, DOG, store)
    assert [s["similarity"] for s in outcome.samples] == [None]


def test_a_set_without_a_centre_keeps_all(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(4):
        small = Image.fromarray(rng.integers(0, 256, (4 + 7 * n, 3 + 9 * n, 3), dtype=np.uint8))
        small.resize((200 + n, 160), Image.Resampling.NEAREST).save(folder / f"{n}.png")
    clock(1).save(folder / "clock.png")
    _, outcome = stage.run(folder, Prep(class_word="x", threshold="0.99"), store)
    assert len(outcome.samples) == 5
    assert "no centre" in outcome.remarks[0]
    _, outcome = stage.run(folder, Prep(class_word="x", kind="style"), store)
    assert len(outcome.samples) == 5
    assert outcome.samples[0]["caption"] == "a x in the style of [V01]"


def test_keep_and_drop_have_the_last_word(photos: Path, store: Store) -> None:
    (photos / "other.jpg").write_bytes(encoded(picture(7, (320, 240))))
    (photos / "tiny.png").write_bytes(encoded(picture(1, (20, 20)), "PNG"))
    options = Prep(class_word="clock", keep=("other.jpg", "*.png"), drop=("[01].jpg",))
    _, outcome = stage.run(photos, options, store)
    kept = {s["source"] for s in outcome.samples}
    assert kept == {"2.jpg", "3.jpg", "4.jpg", "other.jpg", "tiny.png"}
    assert {r["code"] for r in outcome.rejected} == {"user.drop"}
    with pytest.raises(Usage, match=r"matches no photo; did you mean '0.jpg'"):
        stage.run(photos, Prep(keep=("00.jpg",)), store)


def test_an_automatic_threshold(photos: Path, store: Store) -> None:
    (photos / "other.jpg").write_bytes(encoded(picture(7, (320, 240))))
    _, outcome = stage.run(photos, Prep(class_word="clock", threshold="auto"), store)
    assert [r["file"] for r in outcome.rejected] == ["other.jpg"]


def test_dry_run_leaves_nothing(photos: Path, store: Store) -> None:
    artifact, outcome = stage.run(photos, DOG, store, dry_run=True)
    assert artifact is None
    assert len(outcome.samples) == 5
    assert not store.path.exists()


def test_captions_beside_photos(photos: Path, store: Store) -> None:
    for n in range(5):
        (photos / f"{n}.txt").write_text(f"sks clock number {n}")
    options = Prep(class_word="clock", caption_replace=("sks=>[V01]",), caption_suffix=", on paper")
    _, outcome = stage.run(photos, options, store)
    assert outcome.samples[3]["caption"] == "[V01] clock number 3, on paper"
    assert outcome.remarks == []
    _, outcome = stage.run(photos, DOG, store)
    assert "no caption has [V01]" in outcome.remarks[0]
    (photos / "4.txt").unlink()
    with pytest.raises(Usage, match=r"1 of 5 photos have no caption \(4.jpg\)"):
        stage.run(photos, DOG, store)


def test_an_outside_captioner(photos: Path, store: Store, tmp_path: Path) -> None:
    script = tmp_path / "say.py"
    script.write_text("import sys, PIL.Image\nprint(PIL.Image.open(sys.argv[-1]).size[0], 'wide')")
    options = Prep(class_word="clock", captioner=f"{sys.executable} '{script}'")
    _, outcome = stage.run(photos, options, store)
    assert outcome.samples[0]["caption"] == "a photo of [V01] clock, 320 wide"
    with pytest.raises(NotFound, match="no program 'nosuch'"):
        stage.run(photos, Prep(class_word="clock", captioner="nosuch --x"), store)
    script.write_text("raise SystemExit('out of luck')")
    with pytest.raises(Usage, match="out of luck"):
        stage.run(photos, options, Store.open(tmp_path / "other"))


def test_kohya_folders(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "set"
    for seed, name in enumerate(["10_sks clock", "10_sks clock", "20_sks clock"]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        clock(seed).save(folder / name / f"{seed}.jpg")
    (folder / "20_sks clock" / "2.txt").write_text("old sks clock")
    options = Prep(caption_missing="template")
    _, outcome = stage.run(folder, options, store)
    assert outcome.concept.class_word == "clock"
    assert [s["caption"] for s in outcome.samples] == [
        "a photo of [V01] clock",
        "a photo of [V01] clock",
        "old [V01] clock",
    ]
    assert [s["weight"] for s in outcome.samples] == [1.0, 1.0, 2.0]
    (folder / "loose").mkdir()
    clock(5).save(folder / "loose" / "5.jpg")
    with pytest.raises(Usage, match="without a number of repeats: 'loose'"):
        stage.run(folder, options, store)


def test_a_kohya_dataset_file(photos: Path, store: Store, tmp_path: Path) -> None:
    (photos / "0.caption").write_text("old sks clock")
    file = tmp_path / "dataset.toml"
    file.write_text(
        "[general]\ncaption_extension = '.caption'\n[[datasets]]\nresolution = 512\n"
        "[[datasets.subsets]]\nimage_dir = 'my clock'\nclass_tokens = 'sks clock'\n"
        "num_repeats = 3\n"
        "[[datasets.subsets]]\nimage_dir = 'reg'\nis_reg = true\n"
    )
    _, outcome = stage.run(file, Prep(caption_missing="template"), store)
    assert [s["caption"] for s in outcome.samples][:2] == [
        "old [V01] clock",
        "a photo of [V01] clock",
    ]
    assert any("class images" in remark for remark in outcome.remarks)


def test_the_command_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "page.jpg").write_text("<html>")
    assert cli.run(["prep", str(photos), "--class", "clock"]) == 0
    said = capsys.readouterr()
    assert said.out == "artifacts/prep/my-clock/v001\n"
    assert "image.type" in said.err
    assert cli.run(["prep", str(photos), "--class", "clock", "--json", "--strict"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["kept"], document["codes"]) == (5, {"image.type": 1})
    assert cli.run(["prep", str(photos), "--threshold", "1.5"]) == 2
    assert cli.run(["prep", "nowhere"]) == 10
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 2


def test_a_guessed_class_is_said(
    photos: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    _, outcome = stage.run(photos, Prep(), store)
    said = f"no --class given, so captions say {outcome.concept.class_word!r}"
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_cannot_be_had(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    command = [sys.executable, "-m", "dreamtune", "prep", str(photos), "--class", "clock"]
    done = subprocess.run(
        [*command, "--clip", "ViT-B-32:laion2b_s34b_b79k"], capture_output=True, text=True
    )
    assert done.returncode == 16
    assert done.stdout == ""
    assert "cannot get ViT-B-32:laion2b_s34b_b79k" in done.stderr.splitlines()[-1]
