"""The only module that writes into the store.

A file appears whole or not at all: written beside its place, synced, renamed, and the folder
synced. `write_safetensors` gives the same bytes for the same tensors, which the library's own
writer does not. Files get mode 0666 less the umask, so that other users' tools can read them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import console
from .errors import Locked, Resources

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextlib.contextmanager
def guard(path: Path, needed: int = 0, verb: str = "write") -> Iterator[None]:
    """Turn a disk that refuses into `Resources`; of a full one, with the bytes needed and free."""
    try:
        yield
    except OSError as e:
        if e.errno in _FULL:
            disk = os.statvfs(_existing(path))
            free = f"{disk.f_frsize * disk.f_bavail:,} free"
            free += ", but for no other file" if disk.f_files and not disk.f_favail else ""
            raise Resources(
                f"cannot {verb} {path}",
                why=f"{os.strerror(e.errno)} ({needed:,} bytes needed, {free})",
                fix="free some space or use another --store, and run the same command again",
            ) from e
        if e.errno == errno.EFBIG:
            raise Resources(
                f"cannot {verb} {path}",
                why=f"{os.strerror(e.errno)} ({needed:,} bytes needed)",
                fix="the disk or `ulimit -f` limits the size of a file; use another --store",
            ) from e
        if e.errno in _REFUSED:
            raise Resources(
                f"cannot {verb} {path}",
                why=os.strerror(e.errno),
                fix="use another --store or set DREAMTUNE_STORE",
            ) from e
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all."""
    _write(path, [data], len(data))


def put(path: Path, data: bytes) -> None:
    """A plain write into a draft, where `seal` syncs thousands of files in one go."""
    with guard(path, len(data)):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _write_all(fd, data)
        finally:
            os.close(fd)


def remove(path: Path) -> None:
    """Delete a file of a draft, if it is there."""
    with guard(path):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put UTF-8 `text` at `path`; characters that came from undecodable names keep their bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def dump_json(obj: Any) -> str:
    """JSON with sorted keys: equal objects give equal text; NaN is refused."""
    return json.dumps(obj, sort_keys=True, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, obj: Any) -> None:
    """Put `dump_json(obj)` at `path`."""
    write_text(path, dump_json(obj))


def append_line(path: Path, text: str) -> None:
    """Add a line, or some, and sync; a torn last line before it is closed off first."""
    line = text.encode("utf-8", "surrogateescape") + b"\n"
    with guard(path, len(line)):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(fd).st_size
            torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
            _write_all(fd, b"\n" + line if torn else line)
            _sync(fd)
        finally:
            os.close(fd)
        if not size:
            sync_folder(path.parent)


def grow(path: Path, pieces: Iterable[bytes]) -> None:
    """Append `pieces`, synced at the end; what was written before a failure stays."""
    with guard(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            for piece in pieces:
                _write_all(fd, piece)
            _sync(fd)
        finally:
            os.close(fd)


def make_folder(path: Path) -> Path:
    """Create `path` and its parents, durably."""
    if not path.is_dir():
        make_folder(path.parent)
        with guard(path):
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)
    return path


def rename(src: Path, dst: Path) -> None:
    """Move a file or folder within a file system, durably; `dst` must not be a full folder."""
    with guard(dst):
        _rename(src, dst)


def seal(folder: Path) -> None:
    """Sync every file and folder below, whoever wrote it, and give files the usual mode."""
    umask = os.umask(0o022)
    os.umask(umask)
    with guard(folder):
        for path in [*folder.rglob("*"), folder]:
            if path.is_dir():
                sync_folder(path)
                continue
            with contextlib.suppress(PermissionError):  # a file system without modes
                path.chmod(0o666 & ~umask)
            with path.open("rb") as f:
                _sync(f.fileno())


@contextlib.contextmanager
def lock(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock that ends with the process; `Locked` names the one who holds it."""
    with guard(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            with _supported("lock files"):
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            pid = os.pread(fd, 20, 0).decode(errors="replace") or "unknown"
            raise Locked(
                f"{what} is being written by process {pid}",
                fix="wait for it to end, or give this run another --name",
            ) from None
        with contextlib.suppress(OSError):  # a full disk has no room for a name, and locks
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether a process holds this lock; looking changes nothing."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        with _supported("lock files"):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def adopt(src: Path, dst: Path) -> None:
    """Take the files of scratch folder `src` into `dst`, synced and with the usual mode."""
    make_folder(dst)
    for file in sorted(p for p in src.rglob("*") if p.is_file()):
        target = dst / file.relative_to(src)
        make_folder(target.parent)
        with file.open("rb") as f:
            _write(target, iter(functools.partial(f.read, 1 << 20), b""), file.stat().st_size)
    remove_tree(src)


def remove_tree(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    with guard(path, verb="remove"), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def discard(path: Path) -> None:
    """Delete what nobody needs any more; when that fails it stays, and is said, and no more."""
    try:
        remove_tree(path)
    except Resources as e:
        console.warn(f"{e.what}, which can go ({e.why})")


def touch(path: Path) -> None:
    """Note that a file was used, where that can be noted."""
    with contextlib.suppress(OSError):
        os.utime(path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def lacks(folder: Path) -> list[str]:
    """What the file system of a folder cannot do, tried on a file that does not stay."""
    temp = folder / f".probe.tmp-{os.getpid()}"
    with guard(folder):
        file = os.open(temp, os.O_RDWR | os.O_CREAT, 0o666)
    home = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    tries: dict[str, Callable[[], object]] = {
        "sync files": lambda: os.fsync(file),
        "sync folders": lambda: os.fsync(home),
        "lock files": lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB),
    }
    missing = []
    for what, attempt in tries.items():
        try:
            attempt()
        except OSError:
            missing.append(what)
    os.close(home)
    os.close(file)
    remove(temp)
    return missing


# Safetensors: 8 bytes of header length, header as JSON padded with spaces to 8 bytes, tensor bytes.

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    describe: Callable[[str], Mapping[str, str]] | None = None,
) -> None:
    """Write torch or numpy `tensors` canonically: same input, same bytes.

    A tensor may also be anything with `dtype`, `shape` and `make()`: it is made when its turn
    comes, so that no two are in memory. `describe`: the metadata, given the SHA-256 (hex) of the
    tensors' bytes; it must be of one length whatever the hash.
    """
    header, order = _header(tensors, describe("0" * 64) if describe else metadata)
    size = len(header) + sum(_size(tensors[name]) for name in order)
    if not describe:
        _write(path, _pieces(header, order, tensors), size)
        return
    digest = hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        yield header
        for name in order:
            data = _bytes(tensors[name])
            digest.update(data)
            yield data

    def finish(fd: int) -> None:
        final, _ = _header(tensors, describe(digest.hexdigest()))
        assert len(final) == len(header), "metadata of one length"
        os.pwrite(fd, final, 0)

    _write(path, hashed(), size, finish)


def dump_safetensors(
    tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The bytes that `write_safetensors` writes."""
    header, order = _header(tensors, metadata)
    return b"".join(_pieces(header, order, tensors))


def _pieces(header: bytes, order: list[str], tensors: Mapping[str, Any]) -> Iterator[bytes]:
    yield header
    for name in order:
        yield _bytes(tensors[name])


def _header(
    tensors: Mapping[str, Any], metadata: Mapping[str, str] | None
) -> tuple[bytes, list[str]]:
    """Length and header, and the names in file order: widest dtype first, then by name."""
    order = sorted(tensors, key=lambda name: (-_itemsize(tensors[name]), name))
    fields: dict[str, Any] = {}
    if metadata:
        if not all(isinstance(v, str) for v in metadata.values()):
            raise TypeError(f"metadata values are texts: {dict(metadata)}")
        fields["__metadata__"] = {k: metadata[k] for k in sorted(metadata)}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + _size(tensor)
        fields[name] = {
            "dtype": _dtype(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def _dtype(tensor: Any) -> str:
    name = getattr(tensor.dtype, "name", None) or str(tensor.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise TypeError(f"safetensors cannot hold {name}")
    return _DTYPES[name]


def _itemsize(tensor: Any) -> int:
    return int(tensor.dtype.itemsize)


def _size(tensor: Any) -> int:
    count = 1
    for n in tensor.shape:
        count *= int(n)
    return count * _itemsize(tensor)


def _bytes(tensor: Any) -> bytes:
    """Little-endian bytes in row-major order."""
    if hasattr(tensor, "make"):
        made = tensor.make()
        assert (_dtype(made), tuple(made.shape)) == (_dtype(tensor), tuple(tensor.shape))
        tensor = made
    if not hasattr(tensor, "detach"):
        return tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


# How a file gets into place.


def _write(
    path: Path, pieces: Iterable[bytes], size: int, finish: Callable[[int], None] | None = None
) -> None:
    """Write beside `path`, sync, rename over it, sync the folder; clean up on failure.

    finish: a last change of what was written, through the open file.
    """
    # Machines that share a disk share process numbers too.
    temp = path.with_name(f".{path.name[:200]}.tmp-{os.getpid()}{os.urandom(4).hex()}")
    with guard(path, size):
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            try:
                for piece in pieces:
                    _write_all(fd, piece)
                if finish:
                    finish(fd)
                _sync(fd)
            finally:
                os.close(fd)
            _rename(temp, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temp.unlink()
            raise


def _rename(src: Path, dst: Path) -> None:
    os.replace(src, dst)  # noqa: PTH105 (one name to patch in fault tests)
    sync_folder(dst.parent)


def _sync(fd: int) -> None:
    with _supported("sync to disk"):
        os.fsync(fd)


@contextlib.contextmanager
def _supported(what: str) -> Iterator[None]:
    """Go on, and say so, where a (network) file system lacks an operation."""
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
            raise
        _degraded(what)


@functools.cache
def _degraded(what: str) -> None:
    console.warn(f"this file system cannot {what}; a crash or a second run can do harm")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _existing(path: Path) -> Path:
    return next(p for p in [path, *path.absolute().parents] if p.exists())
