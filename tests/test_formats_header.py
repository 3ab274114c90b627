"""The header reader: what it reads, and that nothing but a UserError leaves it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamtune import plugins
from dreamtune.errors import Damaged, NotFound, Unsafe, UserError
from dreamtune.formats.header import MAX_HEADER, body_sha256, read_header
from dreamtune.fsops import write_safetensors

BODY = bytes(range(16))
GOOD: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F16", "shape": [2, 2], "data_offsets": [8, 16]},
}


def raw(header: bytes, body: bytes = BODY) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def file(header: dict[str, Any], body: bytes = BODY) -> bytes:
    return raw(json.dumps(header).encode(), body)


def changed(**entry: Any) -> bytes:
    """The good file with other values for tensor b."""
    return file({**GOOD, "b": {**GOOD["b"], **entry}})


def renamed(name: str) -> bytes:
    return file({"__metadata__": {}, "a": GOOD["a"], name: GOOD["b"]})


def test_reads_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(file(GOOD))
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert header.tensors["b"].shape == (2, 2)
    assert (header.tensors["b"].start, header.tensors["b"].end) == (8, 16)
    assert path.read_bytes()[header.body_offset :] == BODY
    assert body_sha256(path) == hashlib.sha256(BODY).hexdigest()


def test_agrees_with_the_library(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    tensors = {
        "x": torch.zeros(3, 1, dtype=torch.bfloat16),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "flag": torch.ones(5, dtype=torch.bool),
    }
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors, {"k": "v"})
    header = read_header(path)
    with safe_open(path, framework="pt") as theirs:
        assert header.metadata == theirs.metadata()
        assert set(header.tensors) == set(theirs.keys())
        for name in header.tensors:
            piece = theirs.get_slice(name)
            assert list(header.tensors[name].shape) == piece.get_shape()
            assert header.tensors[name].dtype == piece.get_dtype()


def test_formats_need_no_torch_to_import() -> None:
    names = plugins.names("dreamtune.formats")
    assert "header" in names
    imports = ", ".join(f"dreamtune.formats.{name}" for name in names)
    code = f"import sys, {imports}; sys.exit(bool({{'torch', 'numpy'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Evil:
    def __reduce__(self) -> Any:
        return os.abort, ()


def zipped(tmp_path: Path) -> bytes:
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("data.pkl", b"")
    return (tmp_path / "z").read_bytes()


UNSAFE = {
    "pickle 4": pickle.dumps(Evil(), 4),
    "pickle 2": pickle.dumps({"a": [1] * 50}, 2),
    "pickle 0": pickle.dumps({"a": 1}, 0),
    "pickle 1": pickle.dumps([1, 2], 1),
    "pickle of torch 1": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    "gguf": b"GGUF\x03\0\0\0" + bytes(100),
    "gzip": b"\x1f\x8b\x08" + bytes(20),
    "newline in a name": renamed("x\nERROR: all is well"),
    "escape in a name": renamed("\x1b[31m"),
    "right-to-left override": renamed("\u202egnp.exe"),
    "lone surrogate": renamed("\ud800"),
    "way out": renamed("../../etc/passwd"),
    "way out on Windows": renamed("a\\..\\b"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_refuses_unsafe(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(UNSAFE[name])
    with pytest.raises(Unsafe) as caught:
        read_header(path)
    assert str(caught.value).isprintable()


def test_refuses_a_zip_and_a_fifo(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(zipped(tmp_path))
    with pytest.raises(Unsafe, match="pickle"):
        read_header(path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Unsafe, match="regular"):
        read_header(tmp_path / "fifo")
    with pytest.raises(Unsafe, match="regular"):
        read_header(tmp_path)
    with pytest.raises(NotFound):
        read_header(tmp_path / "none")


DAMAGED = {
    "it is empty": b"",
    "zeros only": bytes(100),
    "does not begin": b"short",
    "web page": b"\n<!DOCTYPE html><html>Please log in</html>",
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "does not begin with": b"PNG" * 50,
    "4 of 16 bytes are missing": file(GOOD)[:-4],
    "3 bytes after the last tensor": file(GOOD) + b"abc",
    "ends within its header": file(GOOD)[:40],
    "at most": (MAX_HEADER + 1).to_bytes(8, "little") + b"{" + bytes(100),
    "'b' appears twice": raw(
        b'{"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "'k' appears twice": raw(b'{"__metadata__":{"k":"1","k":"2"}}', b""),
    "begin with '{'": raw(b" " + json.dumps(GOOD).encode()),
    "not JSON (JSONDecodeError)": raw(b"{not json}", b""),
    "not JSON (UnicodeDecodeError)": raw(b'{"\xff": 1}', b""),
    "not JSON (RecursionError)": raw(b'{"a":' * 100_000, b""),
    "not JSON (ValueError)": raw(b'{"a":' + b"9" * 10_000 + b"}", b""),
    "NaN in the header": raw(b'{"a":NaN}', b""),
    "map from strings": raw(b'{"__metadata__":{"a":1}}', b""),
    "is not a map": raw(b'{"__metadata__":[]}', b""),
    "'b' needs exactly": file({**GOOD, "b": 3}),
    "needs exactly dtype": changed(extra=1),
    "unknown dtype 'F7'": changed(dtype="F7"),
    "unknown dtype": changed(dtype=["F32"]),
    "'b' has no valid shape": changed(shape=[-2, -2]),
    "no valid shape": changed(shape=[2.0, 2]),
    "valid shape": changed(shape=[True, 4]),
    "has no valid shape": changed(shape=[1] * 17 + [4]),
    "has no valid": changed(shape=[2**70]),
    "no valid data_offsets": changed(data_offsets=[-8, 0]),
    "valid data_offsets": changed(data_offsets=[16, 8]),
    "data_offsets": changed(data_offsets=[8, 16, 24]),
    "does not fill": changed(shape=[3, 3]),
    "overlap": changed(data_offsets=[4, 12]),
    "hole between": changed(data_offsets=[9, 17]),
    "before the first tensor": file({"b": GOOD["b"]}),
    "16 bytes after": file({}),
}


@pytest.mark.parametrize("why", DAMAGED)
def test_refuses_damaged(why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGED[why])
    with pytest.raises(Damaged) as caught:
        read_header(path)
    assert why in str(caught.value)
    assert str(caught.value).isprintable()


def test_limits_the_number_of_tensors(tmp_path: Path) -> None:
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    path = tmp_path / "x.safetensors"
    path.write_bytes(file({str(i): empty for i in range(100_001)}, b""))
    with pytest.raises(Damaged, match="100,001 tensors"):
        read_header(path)


numbers = st.integers(-3, 20) | st.sampled_from([2**63, 2**64, 10**30])
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
entries = anything | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F4"]) | anything,
        "shape": st.lists(numbers, max_size=3) | anything,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | anything,
    }
)
headers = st.dictionaries(st.text(max_size=8), entries, max_size=3)
files = st.binary(max_size=64) | st.builds(
    lambda header, body, cut: file(header, body)[: None if cut > 40 else -cut or None],
    headers,
    st.binary(max_size=24),
    st.integers(0, 80),
)


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=files)
def test_only_user_errors_escape(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(data)
    try:
        header = read_header(path)
    except UserError as error:
        assert error.code in (12, 13)
        assert str(error).isprintable()
    else:
        assert header.body_offset + sum(t.end - t.start for t in header.tensors.values()) == len(
            data
        )


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, len(file(GOOD)) - 1), value=st.integers(0, 255))
def test_one_changed_byte_never_crashes(at: int, value: int, tmp_path: Path) -> None:
    data = bytearray(file(GOOD))
    data[at] = value
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(data)
    try:
        read_header(path)
    except UserError as error:
        assert error.code in (12, 13)
