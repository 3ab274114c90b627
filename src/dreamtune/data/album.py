"""Every photo of a folder looked at: decoded in workers, encoded in batches, remembered on disk.

Photos go in chunks. A finished chunk is a small file of facts and vectors, so that a run that was
killed goes on with the next one, and memory holds vectors, never pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import fsops
from . import decode, encoder
from .encoder import SIDE
from .examine import Look, Seen, examine
from .photos import Rejected, Seeing
from .quality import Quality
from .similarity import Calibration

T = TypeVar("T")
CHUNK = 32


@dataclass(frozen=True)
class Limits:
    """For one decoding process: seconds a photo, bytes of memory; and how many processes."""

    seconds: float
    memory: int
    workers: int


@dataclass
class Looked:
    """One photo: the facts of a good one, or the code and detail of one that cannot be used."""

    name: str
    code: str = ""
    detail: str = ""
    sha256: str = ""
    picture: str = ""
    bytes: int = 0
    size: tuple[int, int] = (0, 0)
    original: tuple[int, int] = (0, 0)
    quality: Quality = field(default_factory=lambda: Quality(0, 0, 0))
    notes: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, facts: dict[str, object]) -> Looked:
        looked = cls(**facts)  # type: ignore[arg-type]
        looked.quality = Quality(**facts["quality"])  # type: ignore[arg-type]
        looked.size, looked.original = _pair(looked.size), _pair(looked.original)
        return looked


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


@dataclass
class Album:
    """looked: one entry a photo; the arrays have a row for each, meaningless where `code` is set.

    features (N, D) float16; heat (N, h, w) float32; prints (N, 16, 16) uint8
    """

    looked: list[Looked]
    features: NDArray[np.float16]
    heat: NDArray[np.float32]
    prints: NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """One photo to look at, by its name in the folder."""

    name: str
    file: Path
    seeing: Seeing


def look(
    jobs: Sequence[Job],
    images: Path,
    memory: Path,
    limits: Limits,
    load_encoder: Callable[[], encoder.Encoder],
    advance: Callable[[int], None],
) -> tuple[Album, Calibration]:
    """Look at every photo; (album, the calibration of its features).

    images: where clean pictures go, named by their number; memory: where finished chunks go
    """
    chunks = [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]
    done = 0
    while done < len(chunks) and _finished(_file(memory, done), chunks[done], images):
        advance(len(chunks[done]))
        done += 1
    rest = [
        Look(job.file, images / f"{number:04d}", job.seeing)
        for number, job in enumerate(jobs)
        if number >= done * CHUNK
    ]
    workers = min(limits.workers, len(rest))
    results = decode.run(
        examine, rest, workers=workers, seconds=limits.seconds, memory=limits.memory
    )
    with contextlib.closing(ahead(results, 2 * CHUNK)) as seen:
        encode = load_encoder()  # torch is imported while the first photos are decoded
        for number in range(done, len(chunks)):
            outcomes = [next(seen)[1] for _ in chunks[number]]
            _remember(_file(memory, number), chunks[number], outcomes, encode)
            advance(len(outcomes))
    return _gather(memory, len(chunks)), encode.calibration


def _file(memory: Path, number: int) -> Path:
    return memory / f"{number:06d}.safetensors"


def ahead(items: Generator[T], count: int) -> Generator[T]:
    """The same items, produced by a thread that is at most `count` of them ahead."""
    box: queue.Queue[tuple[str, object]] = queue.Queue(count)
    stopped = threading.Event()

    def put(kind: str, value: object) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                box.put((kind, value), timeout=0.1)
                return

    def pump() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    break
            put("end", None)
        except BaseException as e:
            put("error", e)
        finally:
            items.close()

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = box.get()
            if kind == "end":
                return
            if kind == "error":
                raise value  # type: ignore[misc]
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join(timeout=15)


def _remember(
    file: Path, chunk: Sequence[Job], outcomes: list[Seen | Rejected], encode: encoder.Encoder
) -> None:
    """Encode one chunk and write down what is known of it."""
    pixels = np.zeros((len(chunk), SIDE, SIDE, 3), np.uint8)  # black where there is no picture
    prints = np.zeros((len(chunk), 16, 16), np.uint8)
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, Seen):
            pixels[row], prints[row] = outcome.tower, outcome.fingerprint
    features, heat = encode(pixels)
    rows = {"features": features.astype(np.float16), "heat": heat, "prints": prints}
    looked = [_looked(job.name, outcome) for job, outcome in zip(chunk, outcomes, strict=True)]
    facts = json.dumps([dataclasses.asdict(entry) for entry in looked])
    fsops.write_safetensors(file, rows, {"photos": facts})


def _looked(name: str, outcome: Seen | Rejected) -> Looked:
    if isinstance(outcome, Rejected):
        return Looked(name, outcome.code, outcome.detail)
    shared = {f.name for f in dataclasses.fields(Looked)} & {
        f.name for f in dataclasses.fields(Seen)
    }
    return Looked(name, **{field: getattr(outcome, field) for field in shared})


def _finished(file: Path, chunk: Sequence[Job], images: Path) -> bool:
    """Whether a chunk is written down, for the same photos, and its pictures are intact."""
    if not file.is_file():
        return False
    looked = _read(file)[0]
    return [entry.name for entry in looked] == [job.name for job in chunk] and all(
        entry.code or _intact(images / entry.picture, entry.sha256) for entry in looked
    )


def _intact(file: Path, sha256: str) -> bool:
    return file.is_file() and fsops.hash_file(file) == sha256


def _read(file: Path) -> tuple[list[Looked], dict[str, NDArray[Any]]]:
    from safetensors import safe_open

    with safe_open(file, framework="np") as chunk:
        looked = [Looked.from_dict(facts) for facts in json.loads(chunk.metadata()["photos"])]
        return looked, {name: chunk.get_tensor(name) for name in chunk.keys()}  # noqa: SIM118


def _gather(memory: Path, chunks: int) -> Album:
    looked: list[Looked] = []
    arrays: list[dict[str, NDArray[Any]]] = []
    for number in range(chunks):
        entries, rows = _read(_file(memory, number))
        looked += entries
        arrays.append(rows)
    return Album(looked, **{name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]})
