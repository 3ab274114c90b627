"""What a .safetensors file holds, read from its header alone: no torch, no tensor is loaded.

    file = N (8 bytes, little endian) | header: N bytes of JSON | body: the tensors, end to end

The format: https://github.com/huggingface/safetensors#format. This reader is stricter than the
reference implementation (0.8.0), which accepts duplicate keys, leading spaces and control
characters in names.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
import struct
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from dreamtune.errors import Damaged, NotFound, Resources, Unsafe, UserError

MAX_HEADER = 32 * 2**20  # bytes; the largest checkpoints need about 2 MiB
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 16

BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
BITS |= dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8)
BITS |= dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
BITS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 16)
BITS |= dict.fromkeys(("U32", "I32", "F32"), 32)
BITS |= dict.fromkeys(("U64", "I64", "F64"), 64)

# What people have under the name model.safetensors. Pickles run code when they are opened.
PICKLE = re.compile(rb"\x80[\x02-\x05]|[\]}\(]q\x00|\((dp|lp)|c[A-Za-z_][\w.]*\n[A-Za-z_]")
HTML = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
ARCHIVES = (b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")
CONVERT = "ask for the .safetensors version of this file"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `start` and `end` are byte positions in the body."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The whole header; the body begins at byte `body_offset` of the file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    body_offset: int


def read_header(path: Path) -> Header:
    """The checked header of `path`: every byte of the body belongs to exactly one tensor.

    Raises NotFound, Unsafe (a pickle, archive or another format; names with control characters)
    or Damaged.
    """
    with _open(path) as file:
        size = path.stat().st_size
        start = file.read(512)
        length = int.from_bytes(start[:8], "little")
        if start[8:9] != b"{" or length > min(MAX_HEADER, size - 8):
            raise _not_safetensors(path, start, size)
        file.seek(8)
        text = file.read(length)
    try:
        return _parse(text, size - 8 - length)
    except _Fault as fault:
        raise fault.kind(f"{path.name} is not a sound safetensors file", why=str(fault)) from None


def scalar(path: Path, header: Header, name: str) -> float:
    """The only number of the tensor `name`; NaN when it has none, several or of a rare dtype."""
    info = header.tensors[name]
    code = {"F64": "d", "F32": "f", "F16": "e", "BF16": "H", "I64": "q", "I32": "i"}.get(info.dtype)
    if code is None or math.prod(info.shape) != 1:
        return math.nan
    with path.open("rb") as file:
        file.seek(header.body_offset + info.start)
        (number,) = struct.unpack(f"<{code}", file.read(info.end - info.start))
    if info.dtype == "BF16":  # the upper half of a float32
        (number,) = struct.unpack("<f", struct.pack("<I", number << 16))
    return float(number)


def body_sha256(path: Path) -> str:
    """SHA-256 (hex) of all bytes after the header."""
    offset = read_header(path).body_offset
    with path.open("rb") as file:
        file.seek(offset)
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Fault(Exception):
    """A broken rule, before the name of the file is known."""

    def __init__(self, why: str, kind: type[UserError] = Damaged) -> None:
        self.kind = kind
        super().__init__(why)


def _open(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for ever
            raise Unsafe(f"{path.name} is not a regular file")
        return path.open("rb")
    except FileNotFoundError:
        raise NotFound(f"no such file: {path}") from None
    except OSError as error:
        raise Resources(f"cannot read {path}", why=error.strerror or str(error)) from None


def _not_safetensors(path: Path, start: bytes, size: int) -> UserError:
    """What the file is instead, from its first bytes."""
    what = f"{path.name} is not a safetensors file"
    if start.startswith(b"PK\x03\x04") or PICKLE.match(start):
        return Unsafe(what, why="it is a pickle, which can run code when opened", fix=CONVERT)
    if start.startswith(ARCHIVES):
        return Unsafe(what, why="it is an archive", fix=CONVERT)
    if start.startswith(b"GGUF"):
        return Unsafe(what, why="it is a GGUF file", fix=CONVERT)
    if start.startswith(b"version https://git-lfs"):
        why = "it is a Git LFS pointer, not the weights"
        return Damaged(what, why=why, fix="run `git lfs pull` where it came from")
    if HTML.match(start):
        why = "it is a web page, so the download failed"
        return Damaged(what, why=why, fix="download it again; the site may want a login")
    if not start.strip(b"\0"):
        return Damaged(what, why="it is empty" if not start else "it begins with zeros only")
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        why = "its header does not begin with '{'"
    elif length > MAX_HEADER:
        why = f"its header would be {length:,} bytes, and at most {MAX_HEADER:,} are read"
    else:
        why = f"it ends within its header, {8 + length - size:,} bytes short"
    return Damaged(what, why=why, fix="download or copy it again")


def _parse(text: bytes, body: int) -> Header:
    try:
        entries = json.loads(
            text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise _Fault(f"the header is not JSON ({type(error).__name__})") from None
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _Fault("__metadata__ is not a map from strings to strings")
    if len(entries) > MAX_TENSORS:
        raise _Fault(f"{len(entries):,} tensors, and at most {MAX_TENSORS:,} are read")
    tensors = {_name(name): _tensor(name, entry) for name, entry in entries.items()}
    _covers(tensors, body)
    return Header(tensors, metadata, 8 + len(text))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in result if names.count(name) > 1)
        raise _Fault(f"the key {_quote(twice)} appears twice")
    return result


def _no_constant(name: str) -> None:
    raise _Fault(f"{name} in the header")


def _name(name: str) -> str:
    """The name, if it can be shown in a terminal and is no way out of a folder."""
    plain = name.isascii() and name.isprintable()  # the quick way for nearly all
    if not plain and any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI")
        for c in name
    ):
        raise _Fault(f"control characters in the tensor name {_quote(name)}", Unsafe)
    if ".." in re.split(r"[/\\]", name):
        raise _Fault(f"the tensor name {_quote(name)} is a path", Unsafe)
    return name


def _tensor(name: str, entry: Any) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Fault(f"{_quote(name)} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _Fault(f"{_quote(name)} has the unknown dtype {_quote(str(dtype))}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise _Fault(f"{_quote(name)} has no valid shape")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Fault(f"{_quote(name)} has no valid data_offsets")
    start, end = offsets
    if math.prod(shape) * BITS[dtype] != 8 * (end - start):
        raise _Fault(
            f"{_quote(name)} has {end - start:,} bytes, which {dtype} {shape} does not fill"
        )
    return TensorInfo(dtype, tuple(shape), start, end)


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _covers(tensors: dict[str, TensorInfo], body: int) -> None:
    """Refuse overlaps, holes, and a body that is shorter or longer than its tensors."""
    order = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
    if order and order[0][1].start != 0:
        raise _Fault(f"{order[0][1].start:,} bytes before the first tensor belong to none")
    for (name, tensor), (after, following) in pairwise(order):
        if following.start != tensor.end:
            kind = "overlap" if following.start < tensor.end else "have a hole between them"
            raise _Fault(f"{_quote(name)} and {_quote(after)} {kind}")
    end = order[-1][1].end if order else 0
    if end > body:
        raise _Fault(f"truncated: {end - body:,} of {end:,} bytes are missing")
    if end < body:
        raise _Fault(f"{body - end:,} bytes after the last tensor belong to none")


def _quote(name: str) -> str:
    """`name` for a message: escaped, and cut where it is long."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
