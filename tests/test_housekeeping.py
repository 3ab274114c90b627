"""gc, rm, tag, log and doctor: what they show, what they remove, and what they refuse to."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreamtune import cli, console, floors, fsops
from dreamtune.artifacts import Artifact
from dreamtune.errors import NotFound, Unsafe
from dreamtune.store import Store

DAY = 86400.0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A command line in this process: (exit code, stdout, stderr)."""

    def run(*args: str) -> tuple[int, str, str]:
        console.quiet(False)
        code = cli.run(list(args))
        return code, *capsys.readouterr()

    return run


def make(
    store: Store, kind: str, name: str, parents: tuple[str, ...] = (), **files: str
) -> Artifact:
    recipe = {"files": files}
    with store.draft(kind, name, store.key(kind, 1, recipe, parents), recipe, parents) as draft:
        for file, text in files.items():
            fsops.write_text(draft.path / file.replace("_", "."), text)
        return draft.commit({})


@pytest.fixture
def family(store: Store) -> tuple[Artifact, Artifact, Artifact]:
    """Photos, an adapter made from them, and pictures made with it."""
    line = {"source": "a\nb.jpg", "sha256": "5a" * 32}
    photos = make(store, "prep", "rex", samples_jsonl=json.dumps(line) + "\n")
    adapter = make(store, "adapter", "rex", (photos.id,), w="w")
    return photos, adapter, make(store, "samples", "rex", (adapter.id,), x_png="PNG")


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# rm.


def test_rm_deletes_and_the_journal_says_so(run: Any, store: Store) -> None:
    one, two = make(store, "prep", "rex", f="1"), make(store, "prep", "rex", f="2")
    code, out, err = run("rm", "rex@v002")
    assert (code, out, err) == (0, "artifacts/prep/rex/v002\n", "removed prep/rex/v002\n")
    assert store.list() == [one] and not two.path.exists()
    last = json.loads((store.path / "journal.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["version"]) == ("removed", "v002")
    assert store.newest("prep") == one
    assert make(store, "prep", "rex", f="2").version == "v003"  # a label never means two things


def test_rm_refuses_what_others_were_made_from(run: Any, store: Store, family: Any) -> None:
    before = tree(store.path)
    code, _, err = run("rm", "rex", "--kind", "prep")
    assert code == 2 and "rex@v001 stays: rex@v001 was made from it; remove them too" in err
    assert tree(store.path) == before
    photos, adapter, pictures = family
    assert run("rm", str(adapter.path), str(photos.path), str(pictures.path))[0] == 0
    assert store.list() == []


def test_rm_with_force(run: Any, store: Store, family: Any) -> None:
    assert run("rm", "adapter/rex", "--force")[0] == 0
    assert [a.kind for a in store.list()] == ["prep", "samples"]


def test_rm_knows_a_version_with_the_same_bytes(run: Any, store: Store, family: Any) -> None:
    make(store, "prep", "twin", samples_jsonl=(family[0].path / "samples.jsonl").read_text())
    assert run("rm", "rex", "--kind", "prep")[0] == 0


def test_rm_refuses_what_has_a_tag(run: Any, store: Store) -> None:
    make(store, "prep", "rex", f="1")
    assert run("tag", "rex", "best")[0] == 0
    code, _, err = run("rm", "rex")
    assert code == 2 and "it has the tag 'best'" in err
    assert run("tag", "--delete", "best")[0] == 0 == run("rm", "rex")[0]


def test_rm_of_a_damaged_artifact_goes_by_its_folder(run: Any, store: Store) -> None:
    one = make(store, "prep", "rex", f="1")
    (one.path / "manifest.json").write_text("{")
    assert run("rm", "rex")[0] == 10
    assert run("rm", str(one.path))[0] == 0 and not one.path.exists()


def test_rm_touches_nothing_else(run: Any, store: Store, tmp_path: Path) -> None:
    one = make(store, "prep", "rex", f="1")
    (tmp_path / "a" / "b" / "v001").mkdir(parents=True)
    alien = shutil.copytree(store.path, tmp_path / "elsewhere") / "prep/rex/v001"
    before = tree(tmp_path)
    for ref in ("a/b/v001", str(alien), "artifacts", "artifacts/prep/rex", "..", "nothing"):
        assert run("rm", "--force", ref)[0] in (2, 10), ref
    assert run("rm", "rex", "--dry-run")[:2] == (0, "artifacts/prep/rex/v001\n")
    assert tree(tmp_path) == before and one.path.exists()


def test_rm_in_a_store_with_parts_on_another_disk(run: Any, store: Store, tmp_path: Path) -> None:
    make(store, "prep", "rex", f="1")
    (store.path / "prep").rename(tmp_path / "disk")
    (store.path / "prep").symlink_to(tmp_path / "disk")
    assert run("rm", "rex@v001")[:2] == (0, "artifacts/prep/rex/v001\n")
    assert not list((tmp_path / "disk" / "rex").glob("v*"))


def test_rm_of_what_is_being_written_is_refused(run: Any, store: Store) -> None:
    make(store, "prep", "rex", f="1")
    with store.draft("prep", "rex", "k" * 64, {}, []):
        assert run("rm", "rex")[0] == 11
    assert run("rm", "rex")[0] == 0


# tag.


def test_a_tag_means_one_version_until_it_is_moved(run: Any, store: Store) -> None:
    one, two = make(store, "prep", "rex", f="1"), make(store, "prep", "rex", f="2")
    assert run("tag", "rex@v001", "best") == (0, "", "")
    assert store.resolve("best") == one == store.resolve("best", "prep")
    assert store.newest("prep") == two  # a tag returns nothing
    assert run("tag") == (0, "best\tprep/rex/v001\n", "")
    assert run("tag", "rex@v002", "best")[0] == 0
    assert store.resolve("best") == two
    assert json.loads(run("tag", "--json")[1]) == {"best": "prep/rex/v002"}
    assert run("tag", "--delete", "best")[0] == 0
    with pytest.raises(NotFound):
        store.resolve("best")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["rex", "rex"], 2),
        (["rex", "../x"], 2),
        (["rex", "a b"], 2),
        (["rex"], 2),
        (["rex", "best", "--delete", "best"], 2),
        (["nothing", "best"], 10),
        (["--delete", "bset"], 10),
    ],
)
def test_a_tag_that_cannot_be(run: Any, store: Store, args: list[str], code: int) -> None:
    make(store, "prep", "rex", f="1")
    assert run("tag", *args)[0] == code
    assert store.tags() == {}


# log.


def test_log_goes_down_to_the_photos(run: Any, family: Any) -> None:
    photos, adapter, pictures = family
    expected = [
        f"samples rex@v001  {pictures.id[:12]}",
        f"  adapter rex@v001  {adapter.id[:12]}",
        f"    prep rex@v001  {photos.id[:12]}",
        "      5a5a5a5a5a5a  a b.jpg",
    ]
    assert run("log", "samples/rex") == (0, "\n".join(expected) + "\n", "")
    document = json.loads(run("log", "rex", "--kind", "samples", "--json")[1])
    assert document["from"][0]["from"][0]["photos"] == [{"source": "a\nb.jpg", "sha256": "5a" * 32}]


def test_log_of_a_picture_that_went_elsewhere(run: Any, family: Any, tmp_path: Path) -> None:
    shutil.copy(family[2].path / "x.png", tmp_path / "somewhere.png")
    assert run("log", "somewhere.png") == run("log", "samples/rex")
    (tmp_path / "somewhere.png").write_text("edited")
    code, out, err = run("log", "somewhere.png")
    assert (code, out) == (10, "") and "no artifact in artifacts holds the bytes" in err


def test_log_says_what_is_not_there(run: Any, store: Store, family: Any) -> None:
    assert run("rm", "rex", "--kind", "prep", "--force")[0] == 0
    assert "    " + family[0].id[:12] + "  not in this store" in run("log", "samples/rex")[1]


# gc.


def old(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    for p in [path, *path.rglob("*")]:
        os.utime(p, (then, then))


def unfinished(store: Store, name: str, key: str) -> Path:
    with store.draft("adapter", name, key, {}, [], keep=True) as draft:
        fsops.write_bytes(draft.path / "checkpoints" / "step-000001.safetensors", b"x" * 1000)
        return draft.path


def test_gc_takes_what_is_old_or_done(run: Any, store: Store) -> None:
    made = make(store, "adapter", "rex", w="w")
    done = unfinished(store, "rex", made.key)
    abandoned = unfinished(store, "max", "a" * 64)
    fresh = unfinished(store, "max", "b" * 64)
    for name, age in (("used", 0), ("unused", 31), (".part.tmp-1", 2), ("future", -400)):
        fsops.write_bytes(fsops.make_folder(store.path / "cache") / name, b"c" * 10)
        old(store.path / "cache" / name, age)
    for path, age in ((abandoned, 31), (fresh, 29)):
        old(path, age)
    before = tree(store.path)
    expected = {str(done), str(abandoned)}
    expected |= {f"artifacts/cache/{n}" for n in ("unused", ".part.tmp-1")}
    code, out, err = run("gc", "--dry-run")
    assert code == 0 and {str(Path(p)) for p in out.split()} == {
        os.path.relpath(p) for p in expected
    }
    assert tree(store.path) == before and "would be freed" in err
    assert run("gc")[1] == out
    assert fresh.exists() and not abandoned.exists() and not done.exists()
    assert sorted(p.name for p in (store.path / "cache").iterdir()) == ["future", "used"]
    assert store.verify(deep=True) == {made.path: []}
    assert run("gc")[1] == ""


def test_gc_keeps_the_cache_small_and_the_last_used(run: Any, store: Store) -> None:
    for age in range(4):
        fsops.write_bytes(fsops.make_folder(store.path / "cache") / str(age), b"c" * 2**20)
        old(store.path / "cache" / str(age), age)
    assert run("gc", "--cache", str(2 / 1024))[0] == 0
    assert sorted(p.name for p in (store.path / "cache").iterdir()) == ["0", "1"]
    document = json.loads(run("gc", "--cache", "0", "--json")[1])
    assert [Path(one["path"]).name for one in document] == ["0", "1"]


def test_gc_leaves_what_is_being_written(run: Any, store: Store) -> None:
    path = unfinished(store, "rex", "a" * 64)
    with store.draft("adapter", "rex", "a" * 64, {}, [], keep=True):
        old(path, 99)
        assert run("gc")[:2] == (0, "") and path.exists()
    assert run("gc")[0] == 0 and not path.exists()


# doctor.


def test_doctor_is_content_with_a_sound_store(run: Any, store: Store, family: Any) -> None:
    code, out, err = run("doctor")
    assert (code, err) == (0, "") and "!!" not in out
    assert "3 artifacts" in out and "torch" in out and "GiB free" in out
    document = json.loads(run("doctor", "--json")[1])
    assert {"dreamtune", "torch", "cpu", "disk", "store"} <= {f["about"] for f in document}
    assert all(f["code"] == 0 for f in document)
    assert not list(store.path.rglob(".probe*"))


def test_doctor_names_what_is_wrong(run: Any, store: Store, family: Any) -> None:
    (family[1].path / "w").unlink()
    unfinished(store, "max", "a" * 64)
    with (store.path / "journal.jsonl").open("ab") as file:
        file.write(b"\0\0torn")
    code, out, _ = run("doctor")
    assert code == 12 and "!! damaged" in out and "w: missing" in out
    assert "adapter max is interrupted" in out and "1 lines cannot be read" in out


def test_doctor_shows_no_secret_and_no_user(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.chdir(fsops.make_folder(Path.home()))
    code, out, _ = run("doctor")
    assert code == 0 and "a token" in out
    assert "hf_canary" not in out and str(Path.home()) not in out


def test_a_library_below_its_floor_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(
        floors.metadata, "version", lambda name: "2.5.1+cpu" if name == "torch" else real(name)
    )
    floors.require.cache_clear()
    with pytest.raises(Unsafe, match=r"torch 2\.5\.1\+cpu \(>=2\.11 is needed\); pip install"):
        floors.require()
    code, out, _ = run("doctor")
    assert code == 13 and "!! torch" in out
    monkeypatch.undo()
    floors.require()


FLOORS = {"torch": "2.10", "diffusers": "0.42.1", "transformers": "5.3", "accelerate": "1.15",
          "pillow": "12.3", "safetensors": "0.8", "peft": "0.21"}  # fmt: skip


def test_floors_leave_out_releases_with_known_holes() -> None:
    """The advisories are named in pyproject.toml; what pip would install is what is checked."""
    from packaging.requirements import Requirement

    file = Path(__file__).parents[1] / "pyproject.toml"
    asked = map(Requirement, tomllib.loads(file.read_text())["project"]["dependencies"])
    wanted = {r.name: r.specifier for r in asked}
    assert FLOORS.keys() == floors.READERS
    for name, floor in FLOORS.items():
        below = ".".join([*floor.split(".")[:-1], str(int(floor.split(".")[-1]) - 1)])
        assert not wanted[name].contains(below), name
    here = {x.name: x for x in floors.libraries()}
    assert all(here[name].fits for name in FLOORS)
