"""Finding photos: nothing is opened, nothing outside is reached, nothing hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreamtune.data import examine, intake, walk
from dreamtune.data.photos import Rejected
from dreamtune.errors import NotFound, Usage


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_photos_texts_and_junk(tmp_path: Path) -> None:
    make(tmp_path, "b.jpg", "a/c.PNG", "b.txt", "metadata.jsonl", "clip.mov", "noending")
    make(tmp_path, ".DS_Store", "Thumbs.db", "__MACOSX/._b.jpg", ".hidden/x.jpg", "b.npz", "b.xmp")
    found = walk.find(tmp_path)
    assert found.photos == ["a/c.PNG", "b.jpg", "clip.mov", "noending"]
    assert found.texts == ["b.txt", "metadata.jsonl"]
    assert set(found.ignored) == {".DS_Store", ".hidden", "Thumbs.db", "__MACOSX", "b.npz", "b.xmp"}
    assert not found.refused


def test_links(tmp_path: Path) -> None:
    inside, outside = tmp_path / "photos", tmp_path / "other"
    make(inside, "a.jpg", "more/b.jpg")
    make(outside, "secret.jpg")
    (inside / "again.jpg").symlink_to(inside / "a.jpg")
    (inside / "out.jpg").symlink_to(outside / "secret.jpg")
    (inside / "outer").symlink_to(outside)
    (inside / "more" / "loop").symlink_to(inside)
    (inside / "self.jpg").symlink_to("self.jpg")
    found = walk.find(inside)
    assert found.photos == ["a.jpg", "again.jpg", "more/b.jpg"]
    codes = {refused.name: refused.code for refused in found.refused}
    assert codes == {
        "more/loop": "file.link",
        "out.jpg": "file.link",
        "outer": "file.link",
        "self.jpg": "file.unreadable",
    }
    found = walk.find(inside, follow_links=True)
    assert found.photos == ["a.jpg", "again.jpg", "more/b.jpg", "out.jpg", "outer/secret.jpg"]
    assert {r.name: r.detail for r in found.refused}["more/loop/"] == "a link to a folder above it"


def test_a_pipe_in_a_photos_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(Rejected, match=r"file\.special"):
        examine.read(tmp_path / "x.jpg")
    with pytest.raises(Rejected, match=r"file\.unreadable: No such file"):
        examine.read(tmp_path / "gone.jpg")


def test_a_file_of_terabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.jpg").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Rejected, match=r"file\.too_large"):
        examine.read(tmp_path / "x.jpg")


def test_a_deep_folder_ends(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(80):
        deep = deep / "d"
    deep.mkdir(parents=True)
    make(tmp_path, "a.jpg")
    found = walk.find(tmp_path)
    assert found.photos == ["a.jpg"]
    assert found.refused[0].detail == "folders nested too deeply"


def test_our_own_store_among_the_photos_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "artifacts/journal.jsonl", "artifacts/prep/x/v001/images/0000.jpg")
    assert walk.find(tmp_path).photos == ["a.jpg"]


def test_what_cannot_be_taken(tmp_path: Path) -> None:
    def take(path: Path) -> None:
        intake.take(path, "[V01]", None, False)

    with pytest.raises(NotFound, match="no folder"):
        take(tmp_path / "nowhere")
    with pytest.raises(Usage, match="there is none in it"):
        take(tmp_path)
    make(tmp_path, "manifest.json", "a.jpg", "one.jpg")
    with pytest.raises(Usage, match="is an artifact"):
        take(tmp_path)
    with pytest.raises(Usage, match="is a file"):
        take(tmp_path / "a.jpg")


def test_thousands_of_files_in_any_order(tmp_path: Path) -> None:
    names = [f"{n:04d}.jpg" for n in range(2000)]
    make(tmp_path, *reversed(names))
    assert walk.find(tmp_path).photos == names
