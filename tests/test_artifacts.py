"""The store: keys, ids, references, the journal, and what a crash may leave."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamtune import artifacts, console, fsops, surroundings
from dreamtune.artifacts import Artifact
from dreamtune.errors import Damaged, Locked, NotFound, Resources, Unsafe, Usage
from dreamtune.names import check_name, parse_ref, slug
from dreamtune.store import Store
from tests.faults import EVERYTHING

RECIPE = {"train": {"steps": 3, "sizes": [512, 768]}}
PAYLOAD = {"images/0001.png": b"\x89PNG" * 50, "images/0002.png": b"", "samples.jsonl": b"{}\n"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def make(
    store: Store,
    name: str = "rex",
    kind: str = "prep",
    payload: dict[str, bytes] = PAYLOAD,
    recipe: dict[str, Any] = RECIPE,
    parents: tuple[str, ...] = (),
    **kwargs: Any,
) -> Artifact:
    key = store.key(kind, 1, recipe, parents)
    with store.draft(kind, name, key, recipe, parents, **kwargs) as draft:
        for file, data in payload.items():
            fsops.make_folder((draft.path / file).parent)
            fsops.write_bytes(draft.path / file, data)
        fsops.append_line(draft.path / "log.jsonl", '{"step": 1}')
        return draft.commit({"seconds": random.random(), "host": "x"})


def tree(store: Store) -> set[str]:
    """Everything in the store but lock files."""
    paths = (p for p in store.path.rglob("*") if p.name != ".lock")
    return {p.relative_to(store.path).as_posix() for p in paths}


# What an artifact is.


def test_an_artifact_has_these_files_and_these_facts(store: Store) -> None:
    made = make(store, parents=("f" * 64,))
    assert made.path == store.path / "prep" / "rex" / "v001"
    files = {p.relative_to(made.path).as_posix() for p in made.path.rglob("*") if p.is_file()}
    assert files == {*PAYLOAD, "manifest.json", "run.json", "log.jsonl"}
    manifest = made.read_json("manifest.json")
    assert manifest["schema"] == 1 and manifest["recipe"] == RECIPE
    assert manifest["files"].keys() == PAYLOAD.keys()
    assert manifest["files"]["samples.jsonl"] == {
        "size": 3,
        "sha256": "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356",
    }
    assert manifest["run"].keys() == {"run.json", "log.jsonl"}
    assert (made.kind, made.name, made.version, made.label) == ("prep", "rex", "v001", "rex@v001")
    assert made.parents == ["f" * 64]
    assert str(store.path) not in (made.path / "manifest.json").read_text()
    assert Artifact.load(made.path) == made and made.verify(deep=True) == []


def test_equal_payload_gives_equal_id_whatever_the_run(store: Store) -> None:
    one, two = make(store), make(store, name="other")
    assert one.id == two.id and one.run != two.run and one.version == two.version
    assert make(store, payload={**PAYLOAD, "samples.jsonl": b"{ }\n"}).id != one.id
    moved = {("x.jsonl" if k == "samples.jsonl" else k): v for k, v in PAYLOAD.items()}
    assert make(store, payload=moved).id != one.id


def test_the_key_knows_all_that_goes_in(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    key = store.key("prep", 1, RECIPE, ["a"])
    assert key == store.key("prep", 1, {"train": dict(reversed(RECIPE["train"].items()))}, ["a"])
    others = [
        store.key("adapter", 1, RECIPE, ["a"]),
        store.key("prep", 2, RECIPE, ["a"]),
        store.key("prep", 1, {"train": {**RECIPE["train"], "steps": 4}}, ["a"]),
        store.key("prep", 1, RECIPE, ["b"]),
        store.key("prep", 1, RECIPE, []),
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    others.append(store.key("prep", 1, RECIPE, ["a"]))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(surroundings, "library_versions", lambda: {"torch": "0"})
    others.append(store.key("prep", 1, RECIPE, ["a"]))
    assert len({key, *others}) == len(others) + 1


def test_library_versions_are_those_installed() -> None:
    found = surroundings.library_versions()
    assert set(found) == set(surroundings.LIBRARIES)
    assert found["torch"] == importlib.metadata.version("torch")


def test_a_second_version_never_touches_the_first(store: Store) -> None:
    one = make(store)
    before = {p: p.read_bytes() for p in one.path.rglob("*") if p.is_file()}
    two = make(store, recipe={})
    assert two.version == "v002"
    assert {p: p.read_bytes() for p in one.path.rglob("*") if p.is_file()} == before


def test_a_label_is_never_used_twice(store: Store) -> None:
    make(store)
    two = make(store)
    shutil.rmtree(two.path)
    assert make(store).version == "v003"


# Finding it again.


def test_an_equal_key_finds_the_artifact_and_reuse_makes_it_newest(store: Store) -> None:
    one = make(store)
    two = make(store, recipe={"b": 1})
    key = store.key("prep", 1, RECIPE, [])
    assert store.find(key) == one and store.find("0" * 64) is None
    assert store.newest("prep") == two
    assert store.reuse(one) == one
    assert store.newest("prep") == one
    entries = [json.loads(line) for line in (store.path / "journal.jsonl").read_text().splitlines()]
    assert [(e["seq"], e["event"], e["version"]) for e in entries] == [
        (1, "made", "v001"),
        (2, "made", "v002"),
        (3, "reused", "v001"),
    ]


def test_a_damaged_artifact_is_not_reused(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    console.quiet(False)
    one = make(store)
    (one.path / "samples.jsonl").unlink()
    assert store.find(one.key) is None
    assert "samples.jsonl: missing" in capsys.readouterr().err


def test_newest_is_the_last_that_fits_and_never_a_timestamp(store: Store) -> None:
    one, two = make(store), make(store, name="max")
    other = make(store, kind="adapter")
    for file in one.path.rglob("*"):
        os.utime(file, (2**31, 2**31))
    assert store.newest("prep") == two
    assert store.newest("prep", lambda a: a.name == "rex") == one
    assert store.newest("adapter") == other
    assert store.newest("samples") is None
    assert store.newest("prep", lambda a: False) is None


def test_references(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(store, payload={"f": b"1"})
    two = make(store, payload={"f": b"2"})
    trained = make(store, kind="adapter", payload={"f": b"3"})
    monkeypatch.chdir(store.path)
    assert store.resolve("rex", "prep") == two
    assert store.resolve("rex@v001", "prep") == one == store.resolve("rex@v1", "prep")
    assert store.resolve("prep/rex") == two and store.resolve("adapter/rex@v001") == trained
    assert store.resolve(one.id) == one and store.resolve(one.id[:8], "prep") == one
    assert store.resolve(str(one.path)) == one
    assert store.resolve("prep/rex/v001").id == one.id
    store.reuse(one)
    assert store.resolve("rex", "prep") == one


def test_wrong_references_say_what_there_is(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no prep 'rex': .*store has no prep yet"):
        store.resolve("rex", "prep")
    one = make(store)
    make(store, kind="adapter", payload={"f": b"3"})
    with pytest.raises(NotFound, match=r"no prep 'rxe' in .*; did you mean 'rex'\?"):
        store.resolve("rxe", "prep")
    with pytest.raises(NotFound, match="did you mean 'rex@v001'"):
        store.resolve("rex@v009", "prep")
    with pytest.raises(Usage, match="'rex' is ambiguous: adapter/rex@v001, prep/rex@v001"):
        store.resolve("rex")
    with pytest.raises(Usage, match="is of kind prep, not adapter"):
        store.resolve(str(one.path), "adapter")
    with pytest.raises(NotFound):
        store.resolve(one.id[:3])
    with pytest.raises(NotFound, match=r"no artifact in .*: there is no manifest.json"):
        store.resolve(str(tmp_path))
    with pytest.raises(NotFound):
        store.resolve("../../etc/passwd")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rex", ("rex", {}, None)),
        ("rex@v003", ("rex@v003", {}, None)),
        ("rex@0.8", ("rex", {}, 0.8)),
        ("rex@-1", ("rex", {}, -1.0)),
        ("rex@step=300", ("rex", {"step": "300"}, None)),
        ("rex@v003@step=300@.5", ("rex@v003", {"step": "300"}, 0.5)),
        ("rex@0.5@v003", ("rex@0.5@v003", {}, None)),
        ("store/adapter/rex/v001@0.8", ("store/adapter/rex/v001", {}, 0.8)),
    ],
)
def test_parse_ref(text: str, expected: object) -> None:
    assert parse_ref(text) == expected


@pytest.mark.parametrize("text", ["rex@", "rex@big", "rex@0.5@0.6", "rex@nan", "rex@=3", "rex@1e5"])
def test_a_reference_that_cannot_be_read(text: str) -> None:
    with pytest.raises(Usage):
        parse_ref(text)


def test_a_folder_with_an_at_sign_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "me@0.5").mkdir()
    assert parse_ref(f"{tmp_path}/me@0.5") == (f"{tmp_path}/me@0.5", {}, None)
    assert parse_ref(f"{tmp_path}/me@0.5@0.8") == (f"{tmp_path}/me@0.5", {}, 0.8)


BAD_NAMES = ["", ".", "..", "../../x", "/abs", "a/b", "CON", "nul.txt", "x" * 300, "name\n", "a b",
             "${jndi}", "-rf", ".hidden", "x\0", "\x1b[31m", "rex@1", "end.", "é" * 51]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_cannot_be_a_folder(store: Store, name: str) -> None:
    with pytest.raises(Usage) as e:
        make(store, name=name)
    assert "\n" not in str(e.value) and not store.path.exists()


@pytest.mark.parametrize("name", ["rex", "Rex_2", "v1.5-beta+x", "été", "犬", "0"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@given(st.text())
def test_a_slug_is_always_a_good_name(text: str) -> None:
    assert check_name(slug(text)) == slug(text)
    assert slug("My dog's photos/") == "My-dog-s-photos"


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DREAMTUNE_STORE", raising=False)
    assert Store.open().path == Path("artifacts")
    monkeypatch.setenv("DREAMTUNE_STORE", str(tmp_path / "env"))
    assert Store.open().path == tmp_path / "env"
    assert Store.open(tmp_path / "flag").path == tmp_path / "flag"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "link").symlink_to("unmounted")
    with pytest.raises(Usage, match=r"is a link to nothing; is its disk mounted\?"):
        Store.open(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(Usage, match="is a file"):
        Store.open(tmp_path / "file")


# Damage.


def test_any_flipped_byte_in_any_file_is_found(store: Store) -> None:
    made = make(store)
    for file in sorted(p for p in made.path.rglob("*") if p.is_file()):
        good = file.read_bytes()
        for i in range(len(good)):
            flipped = good[i] ^ 1 << i % 8
            file.write_bytes(good[:i] + bytes([flipped]) + good[i + 1 :])
            assert store.verify(deep=True)[made.path], (file, i)
        file.write_bytes(good)
    assert store.verify(deep=True) == {made.path: []}


def test_missing_extra_truncated_swapped_and_linked_files_are_found(
    store: Store, tmp_path: Path
) -> None:
    pictures = {"a": b"1" * 9, "b": b"2" * 9}
    for harm, deep, expected in [
        (lambda p: (p / "a").unlink(), False, "a: missing"),
        (lambda p: (p / "log.jsonl").unlink(), False, "log.jsonl: missing"),
        (lambda p: (p / "c").touch(), False, "c: not in the manifest"),
        (lambda p: (p / "a").write_bytes(b"1"), False, "a: 1 bytes instead of 9"),
        (lambda p: (p / "a").rename(p / "c"), False, "c: not in the manifest"),
        (lambda p: shutil.copy(p / "a", p / "b"), True, "b: its bytes have changed"),
        (lambda p: ((p / "a").unlink(), (p / "a").mkdir()), False, "a: missing"),
        (
            lambda p: ((p / "a").rename(tmp_path / "a"), (p / "a").symlink_to(tmp_path / "a")),
            False,
            "a: is not a plain file",
        ),
        (lambda p: (p / "sub").symlink_to(tmp_path), False, "sub: not in the manifest"),
    ]:
        made = make(store, payload=pictures)
        harm(made.path)
        assert expected in made.verify(deep)
        with pytest.raises(Damaged, match=r"rex@v0\d\d is damaged: ") as e:
            made.check(deep)
        assert e.value.code == 12
        shutil.rmtree(made.path)


def test_a_light_check_reads_no_payload(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(store)
    monkeypatch.setattr(fsops, "hash_file", lambda path: pytest.fail("read"))
    assert made.verify() == [] and made.check() is made


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_harmed_manifest_is_damaged_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "one"
    if not folder.exists():
        make(Store(folder))
    path = folder / "prep" / "rex" / "v001"
    good = (path / "manifest.json").read_bytes()
    harmed = folder / "harmed"
    harmed.mkdir(exist_ok=True)
    how = data.draw(st.sampled_from(["cut", "insert", "json", "bytes"]))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = {
        "cut": lambda: good[:at],
        "insert": lambda: good[:at] + data.draw(st.binary(min_size=1, max_size=3)) + good[at:],
        "json": lambda: json.dumps(data.draw(JSON)).encode(),
        "bytes": lambda: data.draw(st.binary(max_size=60)),
    }[how]()
    (harmed / "manifest.json").write_bytes(bad)
    with pytest.raises(Damaged):
        Artifact.load(harmed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["schema", *artifacts.FIELDS, "sha256"]), inner, max_size=9
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": NaN}', '{"schema":' + "9" * 5000 + "}"]
)
def test_a_hostile_manifest_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(Damaged):
        Artifact.load(tmp_path)


def with_schema(path: Path, schema: int, **renamed: str) -> None:
    """Write a manifest anew as a dreamtune with that schema would have, with other field names."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    body = {renamed.get(k, k): v for k, v in manifest.items() if k != "sha256"}
    data = artifacts.dumped({**body, "schema": schema})
    (path / "manifest.json").write_bytes(data)


def test_a_manifest_of_an_older_schema_is_migrated(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(store)
    with_schema(made.path, 0, recipe="settings")
    with pytest.raises(Damaged):  # nobody knows how to read it
        Artifact.load(made.path)
    renamed = {0: lambda old: {**old, "recipe": old["settings"]}}
    monkeypatch.setattr(artifacts, "MIGRATIONS", renamed)
    assert Artifact.load(made.path) == made and store.resolve("rex") == made
    assert store.verify(deep=True) == {made.path: []}
    data = (made.path / "manifest.json").read_bytes()
    (made.path / "manifest.json").write_bytes(data.replace(b"768", b"769"))
    with pytest.raises(Damaged, match="its bytes are not those that were written"):
        Artifact.load(made.path)


def test_a_newer_schema_is_refused_in_a_line(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    console.quiet(False)
    one, two = make(store), make(store)
    with_schema(two.path, 7, recipe="whatever")
    with pytest.raises(Damaged, match=r"schema 7, this dreamtune reads up to 1; use a newer"):
        Artifact.load(two.path)
    assert store.resolve("rex") == one and store.newest("prep") == one
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"{two.path} is passed over" in said[0] and "schema 7" in said[0]
    assert make(store).version == "v003"


@pytest.mark.parametrize("field", ["kind", "parents", "files", "recipe"])
def test_a_manifest_with_its_own_hash_and_wrong_values_is_damaged(store: Store, field: str) -> None:
    made = make(store)
    for value in (3, None, [3], {"a": 3}, {"a": {"size": "1", "sha256": ""}}):
        if field == "recipe" and isinstance(value, dict):
            continue
        body = {"schema": 1, **{f: getattr(made, f) for f in artifacts.FIELDS}, field: value}
        (made.path / "manifest.json").write_bytes(artifacts.dumped(body))
        with pytest.raises(Damaged):
            Artifact.load(made.path)


def test_what_was_made_from_a_damaged_artifact_is_marked(store: Store) -> None:
    photos = make(store)
    adapter = make(store, kind="adapter", payload={"w": b"w"}, parents=(photos.id,))
    free = make(store, kind="adapter", name="max", payload={"w": b"v"}, parents=("0" * 64,))
    (photos.path / "samples.jsonl").write_bytes(b"[]\n")
    report = store.verify(deep=True)
    assert report[photos.path] == ["samples.jsonl: its bytes have changed"]
    assert report[adapter.path] == [f"made from {photos.id[:12]}, which is damaged"]
    assert report[free.path] == []
    assert store.verify()[adapter.path] == []


def test_an_unreadable_folder_hides_no_other(store: Store) -> None:
    one, two = make(store), make(store)
    (one.path / "manifest.json").write_bytes(b"{")
    assert store.list() == [two] and store.newest("prep") == two
    assert list(store.verify()) == [one.path, two.path]
    assert "manifest.json is damaged" in store.verify()[one.path][0]


def test_a_moved_or_copied_store_is_as_good(store: Store, tmp_path: Path) -> None:
    one = make(store)
    two = make(store)
    store.reuse(one)
    moved = Store(Path(shutil.copytree(store.path, tmp_path / "else" / "where")))
    assert all(not found for found in moved.verify(deep=True).values())
    newest = moved.newest("prep")
    assert newest is not None and newest.id == one.id and newest.version == "v001"
    shutil.copytree(two.path, tmp_path / "lone")
    assert Artifact.load(tmp_path / "lone").check(deep=True).label == "rex@v002"
    (moved.path / "journal.jsonl").unlink()
    assert moved.resolve("rex").version == "v002"


def test_a_folder_that_its_owner_renamed_or_copied_goes_by_its_new_name(store: Store) -> None:
    made = make(store)
    shutil.copytree(made.path, made.path.with_name("v005"))
    assert [a.label for a in store.list()] == ["rex@v001", "rex@v005"]
    assert store.resolve("rex@v001").path == made.path
    made.path.parent.rename(store.path / "prep" / "max")
    assert store.resolve("max@v001").id == made.id and store.verify(deep=True)
    with pytest.raises(NotFound):
        store.resolve("rex")
    assert make(store, name="max").version == "v006"
    (store.path / "prep" / "max" / "v999999999").mkdir()  # a number that nobody meant
    assert [make(store, name="max").version for _ in range(2)] == ["v1000000000", "v1000000001"]
    assert len(store.list()) == 5


def test_names_that_some_disks_cannot_tell_apart(store: Store) -> None:
    make(store, name="caf\u00e9")
    assert make(store, name="cafe\u0301").label == "caf\u00e9@v002"
    assert store.resolve("cafe\u0301@v001").version == "v001"
    with pytest.raises(Usage, match="some disks cannot tell 'Caf\u00e9' from 'caf\u00e9'"):
        make(store, name="Caf\u00e9")
    assert [p.name for p in (store.path / "prep").iterdir()] == ["caf\u00e9"]


def test_a_journal_that_cannot_be_read_is_named(store: Store) -> None:
    make(store)
    (store.path / "journal.jsonl").unlink()
    (store.path / "journal.jsonl").mkdir()
    with pytest.raises(Damaged, match=r"journal\.jsonl cannot be read: .*; move it away"):
        make(store)


def test_a_manifest_that_would_never_end_is_not_opened(store: Store) -> None:
    made = make(store)
    (made.path / "manifest.json").unlink()
    os.mkfifo(made.path / "manifest.json")
    assert store.list() == []


def test_a_read_only_store_can_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.quiet(False)
    made = make(store)

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *args, **kwargs)

    real = os.open
    monkeypatch.setattr(os, "open", refuse)
    assert store.list() == [made] and store.verify(deep=True) == {made.path: []}
    assert store.find(made.key) == made and store.resolve("rex") == made
    assert store.reuse(made) == made
    assert "the reuse is not recorded" in capsys.readouterr().err
    with pytest.raises(Resources, match="Read-only file system; use another --store"):
        make(store)


# Crashes.


class Killed(BaseException):
    """Stands for the end of the process."""


def test_the_order_is_payload_manifest_rename_journal(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_replace, real_write, real_sync = os.replace, os.write, os.fsync

    def name(fd: int) -> str:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        return path.name.removeprefix(".").split(".tmp-")[0]

    def replace(src: Path, dst: Path) -> None:
        order.append(f"rename {Path(dst).name}")
        real_replace(src, dst)

    def write(fd: int, data: bytes) -> int:
        order.append(f"write {name(fd)}")
        return real_write(fd, data)

    def sync(fd: int) -> None:
        order.append(f"sync {name(fd)}")
        real_sync(fd)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fsync", sync)
    make(store, payload={"w": b"w"})
    tail = order[order.index("write manifest.json") :]
    assert tail == [
        "write manifest.json",
        "sync manifest.json",
        "rename manifest.json",
        "sync rex",  # the folder of the draft
        "rename v001",
        "sync rex",  # its parent
        "write journal.jsonl",
        "sync journal.jsonl",
        "sync store",
    ]
    head = order[: order.index("write manifest.json")]
    assert head.index("write w") < head.index("sync w") and head.count("sync w") == 2


def test_a_short_job_that_fails_leaves_nothing(store: Store) -> None:
    with (
        pytest.raises(RuntimeError),
        store.draft("prep", "rex", "k" * 64, {}, []) as draft,
    ):
        fsops.write_bytes(draft.path / "f", b"x")
        raise RuntimeError
    assert tree(store) == {"prep", "prep/rex"}


def test_a_long_job_that_fails_goes_on_where_it_was(store: Store) -> None:
    key = store.key("adapter", 1, {}, [])
    with (
        pytest.raises(RuntimeError),
        store.draft("adapter", "rex", key, {}, [], keep=True) as draft,
    ):
        assert not draft.resumed
        fsops.make_folder(draft.path / "checkpoints")
        fsops.write_bytes(draft.path / "checkpoints" / "000100", b"state")
        raise RuntimeError
    with store.draft("adapter", "rex", "0" * 64, {}, [], keep=True) as draft:
        assert not draft.resumed
        assert [p.name for p in draft.path.rglob("*")] == ["checkpoints", "asked.json"]
        asked = json.loads((draft.path / "checkpoints" / "asked.json").read_text())
        assert asked["key"] == "0" * 64 and asked["threads"] == surroundings.thread_count()
    with store.draft("adapter", "rex", key, {}, [], keep=True) as draft:
        assert draft.resumed
        assert (draft.path / "checkpoints" / "000100").read_bytes() == b"state"
        fsops.write_bytes(draft.path / "w", b"w")
        made = draft.commit({})
    assert made.files.keys() == {"w"}
    assert sorted(p.name for p in made.path.iterdir()) == ["manifest.json", "run.json", "w"]
    assert not list(made.path.parent.glob(f".work-{key[:16]}"))


def test_checkpoints_outlive_the_commit_until_it_is_durable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between rename and clean-up, the artifact counts and the next run tidies."""

    def killed(path: Path) -> None:
        raise Killed

    with store.draft("adapter", "rex", "a" * 64, {}, [], keep=True) as draft:
        fsops.make_folder(draft.path / "checkpoints")
        fsops.write_bytes(draft.path / "checkpoints" / "1", b"s")
        fsops.write_bytes(draft.path / "w", b"w")
        monkeypatch.setattr(fsops, "remove_tree", killed)
        with pytest.raises(Killed):
            draft.commit({})
        monkeypatch.undo()
    (made,) = store.list()
    assert (made.path / "checkpoints" / "1").exists() and made.verify(deep=True) == []
    make(store, name="other")
    assert not (made.path / "checkpoints").exists() and made.verify(deep=True) == []


def test_a_torn_journal_line_is_passed_over(store: Store) -> None:
    one = make(store)
    make(store)
    journal = store.path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-25])
    assert store.newest("prep") == one
    three = make(store)
    assert store.newest("prep") == three and three.version == "v003"
    assert json.loads(journal.read_bytes().splitlines()[-1])["seq"] == 2
    journal.write_bytes(b"\xff\0[]\n3\n{}\n" + journal.read_bytes())
    assert store.newest("prep") == three


def test_links_and_special_files_do_not_enter_the_store(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    for make_it in (
        lambda p: p.symlink_to(tmp_path / "secret"),
        lambda p: p.symlink_to(tmp_path),
        lambda p: os.mkfifo(p),
    ):
        with store.draft("prep", "rex", "k" * 64, {}, []) as draft:
            make_it(draft.path / "f")
            with pytest.raises(Unsafe, match="not a plain file"):
                draft.commit({})
    assert store.list() == [] and stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o644


# Other processes.

HOLD = """
import sys, time
from pathlib import Path
from dreamtune import fsops
from dreamtune.store import Store
store = Store(Path(sys.argv[1]))
with store.draft("prep", "rex", "k" * 64, {}, [], keep=sys.argv[2] == "keep") as draft:
    fsops.write_bytes(draft.path / "f", b"x")
    (draft.path / ".g.tmp-1").touch()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("keep", ["keep", "short"])
def test_a_second_process_is_told_who_writes_and_a_kill_leaves_no_litter(
    store: Store, keep: str
) -> None:
    command = [sys.executable, "-c", HOLD, str(store.path), keep]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        before = tree(store)
        with pytest.raises(Locked, match=f"prep 'rex' .* process {holder.pid}") as e:
            make(store)
        assert e.value.code == 11
        make(store, name="other")
        assert before <= tree(store)
        assert [a.name for a in store.list()] == ["other"]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    make(store, name="third")
    left = {p for p in tree(store) if p.startswith("prep/rex/")}
    work = f"prep/rex/.work-{'k' * 16}"
    kept = {work, f"{work}/f", f"{work}/checkpoints", f"{work}/checkpoints/asked.json"}
    assert left == (kept if keep == "keep" else set())
    assert make(store).verify(deep=True) == []


def test_what_could_not_be_removed_before_is_not_kept(store: Store) -> None:
    clean = make(store, name="clean")
    key = store.key("prep", 1, {"n": 1}, [])
    with store.draft("prep", "left", key, {"n": 1}, []) as draft:
        for name in clean.files:
            fsops.make_folder((draft.path / name).parent)
            fsops.write_bytes(draft.path / name, (clean.path / name).read_bytes())
        left = fsops.make_folder(draft.path / ".rehearsal.tmp-7")
        fsops.write_bytes(left / "step-000000.json", b"{}")
        made = draft.commit({})
    assert made.id == clean.id and made.verify(deep=True) == []


RACE = """
import sys, time
from pathlib import Path
from dreamtune import fsops
from dreamtune.store import Store
from dreamtune.errors import Locked
store, who = Store(Path(sys.argv[1])), sys.argv[2]
def attempt(n):
    key = store.key("prep", 1, {"n": n, "who": who}, [])
    with store.draft("prep", "rex", key, {"n": n}, []) as draft:
        fsops.write_text(draft.path / "f", f"{who} {n}")
        print(draft.commit({}).version)
for n in range(4):
    while True:
        try:
            attempt(n)
            break
        except Locked:
            time.sleep(0.01)
"""


def test_racing_writers_do_no_harm(store: Store) -> None:
    command, rounds = [sys.executable, "-c", RACE, str(store.path)], 70 if EVERYTHING else 12
    racers = [
        subprocess.Popen(
            [*command, str(i), str(rounds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for i in range(3)
    ]
    results = [racer.communicate(timeout=500) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], results
    printed = sorted(line for out, _ in results for line in out.decode().split())
    assert printed == [a.version for a in store.list()] and len(printed) == 12
    assert all(not found for found in store.verify(deep=True).values())
    entries = [json.loads(line) for line in (store.path / "journal.jsonl").read_text().splitlines()]
    assert [e["seq"] for e in entries] == list(range(1, len(printed) + 1))


def test_names_that_are_not_utf8_survive(store: Store) -> None:
    made = make(store, payload={"caf\udce9.txt": b"x", "new\nline": b"y"})
    assert made.verify(deep=True) == []
    assert set(Artifact.load(made.path).files) == {"caf\udce9.txt", "new\nline"}
