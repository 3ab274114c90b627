"""A file appears whole or not at all, with the same bytes for the same content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_numpy
from safetensors.torch import load as load_torch
from safetensors.torch import save as save_torch

from dreamtune import console, fsops
from dreamtune.errors import Locked, Resources


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> int:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


# Whole or not at all.


def test_written_files_hold_what_was_given_with_the_usual_mode(tmp_path: Path, umask: int) -> None:
    fsops.write_bytes(tmp_path / "b", b"\0\xff")
    fsops.write_text(tmp_path / "t", "é caf\udce9\n")
    fsops.write_json(tmp_path / "j", {"b": 1, "a": [1.5, None]})
    fsops.write_safetensors(tmp_path / "s", {"w": torch.ones(2)})
    assert (tmp_path / "b").read_bytes() == b"\0\xff"
    assert (tmp_path / "t").read_bytes() == "é caf".encode() + b"\xe9\n"
    assert json.loads((tmp_path / "j").read_text()) == {"a": [1.5, None], "b": 1}
    assert {mode(p) for p in tmp_path.iterdir()} == {0o666 & ~umask}
    assert {p.name for p in tmp_path.iterdir()} == {"b", "t", "j", "s"}


def test_json_is_canonical_and_refuses_nan() -> None:
    assert fsops.dump_json({"b": 1, "a": "é"}) == fsops.dump_json({"a": "é", "b": 1})
    with pytest.raises(ValueError):
        fsops.dump_json({"loss": float("nan")})


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG])
def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    file = tmp_path / "file"
    fsops.write_bytes(file, b"old")

    def fail(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(Resources) as e:
        fsops.write_bytes(file, b"x" * 1234)
    monkeypatch.undo()
    assert e.value.code == 15 and str(file) in str(e.value) and os.strerror(code) in str(e.value)
    if code in (errno.ENOSPC, errno.EDQUOT):
        assert "1,234 bytes needed" in str(e.value) and "free" in str(e.value)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    fsops.write_bytes(tmp_path / "f", b"0123456789")
    monkeypatch.undo()
    assert (tmp_path / "f").read_bytes() == b"0123456789"


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(fd: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real_sync(fd)

    def replace(src: Path, dst: Path) -> None:
        events.append("rename")
        real_replace(src, dst)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    fsops.write_bytes(tmp_path / "f", b"x")
    assert events == ["file", "rename", "folder"]


def test_a_real_file_size_limit_is_a_resource_error(tmp_path: Path) -> None:
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path; from dreamtune import errors, fsops\n"
        "try: fsops.write_bytes(Path('big'), bytes(5000))\n"
        "except errors.Resources as e: print(e)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "cannot write big: File too large (5,000 bytes needed); " in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_sync_is_used_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EINVAL, "no")

    fsops._degraded.cache_clear()
    monkeypatch.setattr(os, "fsync", fail)
    console.quiet(False)
    fsops.write_bytes(tmp_path / "f", b"x")
    fsops.write_bytes(tmp_path / "g", b"y")
    assert (tmp_path / "g").read_bytes() == b"y"
    assert capsys.readouterr().err.count("cannot sync to disk") == 1


# Lines, folders, locks.


def test_a_torn_last_line_is_closed_off(tmp_path: Path) -> None:
    file = tmp_path / "log"
    fsops.append_line(file, "one")
    with file.open("ab") as f:
        f.write(b'{"torn')
    fsops.append_line(file, "two")
    fsops.append_line(file, "three")
    assert file.read_bytes() == b'one\n{"torn\ntwo\nthree\n'


def test_adopt_takes_a_scratch_folder_in(tmp_path: Path, umask: int) -> None:
    scratch, home = tmp_path / "scratch", tmp_path / "home"
    (scratch / "deep" / "er").mkdir(parents=True)
    (scratch / "deep" / "er" / "big").write_bytes(bytes(range(256)) * 10_000)
    (scratch / "private").write_text("x")
    (scratch / "private").chmod(0o600)
    fsops.adopt(scratch, home)
    assert not scratch.exists()
    assert (home / "deep" / "er" / "big").read_bytes() == bytes(range(256)) * 10_000
    assert mode(home / "private") == 0o666 & ~umask


def test_seal_gives_files_of_other_writers_the_usual_mode(tmp_path: Path, umask: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_text("x")
    (tmp_path / "a" / "f").chmod(0o600)
    fsops.seal(tmp_path)
    assert mode(tmp_path / "a" / "f") == 0o666 & ~umask


def test_a_lock_is_exclusive_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    code = (
        "import time; from pathlib import Path; from dreamtune import fsops\n"
        f"with fsops.lock(Path({str(file)!r}), 'x'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(Locked, match=f"prep 'rex' is .* process {holder.pid}"),
            fsops.lock(file, "prep 'rex'"),
        ):
            raise AssertionError("two holders")
        holder.kill()
        holder.wait()
        with fsops.lock(file, "prep 'rex'"):
            pass


def test_remove_tree_removes_files_folders_links_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "f").touch()
    (tmp_path / "link").symlink_to(tmp_path / "keep")
    (tmp_path / "gone" / "deep").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("link", "gone", "file", "never was"):
        fsops.remove_tree(tmp_path / name)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["f", "keep"]


def test_hash_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert fsops.hash_file(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


# Canonical safetensors.

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
FLOATS = [np.float64, np.float32, np.float16]
OTHERS = [np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_]
ARRAYS = st.one_of(
    st.sampled_from(FLOATS).flatmap(
        lambda dtype: hnp.arrays(dtype, SHAPES, elements={"allow_nan": False})
    ),
    st.sampled_from(OTHERS).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)),
)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
METADATA = st.dictionaries(NAMES, NAMES, max_size=4)


@settings(deadline=None)
@given(st.dictionaries(NAMES.filter(lambda n: n != "__metadata__"), ARRAYS, max_size=5), METADATA)
def test_what_is_written_is_what_the_library_reads(
    tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    data = fsops.dump_safetensors(tensors, metadata)
    loaded = load_numpy(data)
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert loaded[name].dtype == array.dtype and loaded[name].shape == array.shape
        assert np.array_equal(loaded[name], array)
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert json.loads(data[8 : 8 + length]).get("__metadata__", {}) == metadata


@settings(deadline=None)
@given(st.dictionaries(NAMES, ARRAYS, min_size=2, max_size=5), METADATA, st.randoms())
def test_order_does_not_change_the_bytes(
    tensors: dict[str, np.ndarray], metadata: dict[str, str], random: object
) -> None:
    def shuffled(items: dict) -> dict:  # type: ignore[type-arg]
        pairs = list(items.items())
        random.shuffle(pairs)  # type: ignore[attr-defined]
        return dict(pairs)

    first = fsops.dump_safetensors(tensors, metadata)
    assert fsops.dump_safetensors(shuffled(tensors), shuffled(metadata)) == first


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
     torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
     torch.uint16, torch.uint32, torch.uint64],
)  # fmt: skip
def test_every_torch_dtype_round_trips_as_the_library_would_write_it(dtype: torch.dtype) -> None:
    tensors = {"b": torch.arange(6).reshape(2, 3).to(dtype), "a": torch.ones(()).to(dtype)}
    data = fsops.dump_safetensors(tensors)
    assert data == save_torch(tensors)
    loaded = load_torch(data)
    assert torch.equal(loaded["b"].view(torch.uint8), tensors["b"].view(torch.uint8))
    assert loaded["a"].dtype == dtype and loaded["a"].shape == ()


def test_mixed_dtypes_stand_in_the_library_s_order() -> None:
    tensors = {
        "z": torch.zeros(3, dtype=torch.float64),
        "m": torch.zeros(3, dtype=torch.uint8),
        "a": torch.zeros(3, dtype=torch.float16),
        "b": torch.zeros(3, dtype=torch.float16),
    }
    assert fsops.dump_safetensors(tensors, {"one": "key"}) == save_torch(tensors, {"one": "key"})


def test_views_parameters_and_numpy_give_the_same_bytes(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(whole.T)
    array = np.arange(12, dtype=">f4").reshape(3, 4).T
    expected = save_torch({"w": whole.T.contiguous()})
    assert fsops.dump_safetensors({"w": whole.T}) == expected
    assert fsops.dump_safetensors({"w": parameter}) == expected
    assert fsops.dump_safetensors({"w": array}) == expected
    fsops.write_safetensors(tmp_path / "w", {"w": whole.T}, {"b": "2", "a": "1"})
    with safe_open(tmp_path / "w", "pt") as f:
        assert f.metadata() == {"a": "1", "b": "2"} and torch.equal(f.get_tensor("w"), whole.T)


def test_a_truncated_file_is_refused_by_the_library() -> None:
    data = fsops.dump_safetensors({"w": torch.ones(4)})
    with pytest.raises(SafetensorError):
        load_torch(data[:-1])


def test_what_safetensors_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="complex64"):
        fsops.dump_safetensors({"w": torch.ones(1, dtype=torch.complex64)})
    with pytest.raises(TypeError, match="metadata"):
        fsops.dump_safetensors({"w": torch.ones(1)}, {"steps": 3})  # type: ignore[dict-item]
