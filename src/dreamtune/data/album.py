"""Every photo of a folder looked at: decoded in workers, encoded in batches, remembered on disk.

Photos go in chunks. A finished chunk is a small file of facts and vectors, so that a run that was
killed goes on with the next one, and memory holds vectors, never pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import fsops
from . import decode, encoder
from .examine import TOWER_SIDE, Look, Seen, examine
from .photos import Rejected, Seeing
from .quality import Quality

T = TypeVar("T")
CHUNK = 32
BATCH = 8  # photos the encoder takes at once; always filled up, so that all batches are alike


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
    size: tuple[int, int] = (0, 0)
    original: tuple[int, int] = (0, 0)
    quality: Quality = Quality(0, 0, 0)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, facts: dict[str, object]) -> Looked:
        looked = cls(**facts)  # type: ignore[arg-type]
        looked.quality = Quality(**facts["quality"])  # type: ignore[arg-type]
        looked.size, looked.original = tuple(looked.size), tuple(looked.original)
        return looked


@dataclass
class Album:
    """looked: one entry a photo; the arrays have a row for each, zeros where `code` is set.

    features (N, D) float16; heat (N, h, w) float32; prints (N, 16, 16) uint8
    """

    looked: list[Looked]
    features: NDArray[np.float16]
    heat: NDArray[np.float32]
    prints: NDArray[np.uint8]


def look(
    folder: Path,
    names: Sequence[str],
    images: Path,
    memory: Path,
    seeing: Seeing,
    limits: Limits,
    load_encoder: Callable[[], encoder.Encoder],
    advance: Callable[[int], None],
) -> Album:
    """Look at all `names` of `folder`; clean pictures go to `images`, finished chunks to `memory`."""
    chunks = [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]
    done = 0
    while done < len(chunks) and _recall(memory / f"{done:06d}.safetensors", chunks[done], images):
        advance(len(chunks[done]))
        done += 1
    rest = [
        Look(folder / name, images / f"{number:04d}", seeing)
        for number, name in enumerate(names)
        if number >= done * CHUNK
    ]
    if rest:
        results = decode.run(
            examine,
            rest,
            workers=min(limits.workers, len(rest)),
            seconds=limits.seconds,
            memory=limits.memory,
        )
        with contextlib.closing(ahead(results, 2 * CHUNK)) as seen:
            encode = load_encoder()  # torch is imported while the first photos are decoded
            for number in range(done, len(chunks)):
                outcomes = [next(seen)[1] for _ in chunks[number]]
                _remember(memory / f"{number:06d}.safetensors", chunks[number], outcomes, encode)
                advance(len(outcomes))
    return _gather(memory, len(chunks))


def ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, produced by a thread that is at most `count` of them ahead."""
    box: queue.Queue[tuple[str, object]] = queue.Queue(count)
    stopped = threading.Event()

    def put(kind: str, value: object) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return box.put((kind, value), timeout=0.1)

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
            items.close()  # type: ignore[attr-defined]

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
    file: Path, names: Sequence[str], outcomes: list[Seen | Rejected], encode: encoder.Encoder
) -> None:
    """Encode one chunk and write down what is known of it."""
    good = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Seen)]
    encoded = _encode([outcomes[i].tower for i in good], encode)  # type: ignore[union-attr]
    rows = {name: np.zeros((len(names), *a.shape[1:]), a.dtype) for name, a in encoded.items()}
    for name, array in encoded.items():
        rows[name][good] = array
    rows["prints"] = np.zeros((len(names), 16, 16), np.uint8)
    for i in good:
        rows["prints"][i] = outcomes[i].fingerprint  # type: ignore[union-attr]
    looked = [_looked(name, outcome) for name, outcome in zip(names, outcomes, strict=True)]
    facts = json.dumps([dataclasses.asdict(entry) for entry in looked])
    fsops.write_safetensors(file, rows, {"photos": facts})


def _encode(
    pixels: list[NDArray[np.uint8]], encode: encoder.Encoder
) -> dict[str, NDArray[np.floating]]:
    features, heat = [], []
    for i in range(0, max(len(pixels), 1), BATCH):
        batch = np.zeros((BATCH, TOWER_SIDE, TOWER_SIDE, 3), np.uint8)
        part = pixels[i : i + BATCH]
        if part:
            batch[: len(part)] = part
        encoded = encode(batch)
        features.append(encoded.features[: len(part)].astype(np.float16))
        heat.append(encoded.heat[: len(part)])
    return {"features": np.concatenate(features), "heat": np.concatenate(heat)}


def _looked(name: str, outcome: Seen | Rejected) -> Looked:
    if isinstance(outcome, Rejected):
        return Looked(name, code=outcome.code, detail=outcome.detail)
    facts = {
        f.name: getattr(outcome, f.name)
        for f in dataclasses.fields(Looked)
        if hasattr(outcome, f.name)
    }
    return Looked(name, **facts)


def _recall(file: Path, names: Sequence[str], images: Path) -> bool:
    """Whether a chunk is finished: written down, for the same names, and its pictures intact."""
    if not file.is_file():
        return False
    looked = _read(file)[0]
    return [entry.name for entry in looked] == list(names) and all(
        entry.code or _intact(images / entry.picture, entry.sha256) for entry in looked
    )


def _intact(file: Path, sha256: str) -> bool:
    return file.is_file() and fsops.hash_file(file) == sha256


def _read(file: Path) -> tuple[list[Looked], dict[str, NDArray[np.generic]]]:
    from safetensors import safe_open

    with safe_open(file, framework="np") as chunk:
        looked = [Looked.from_dict(facts) for facts in json.loads(chunk.metadata()["photos"])]
        return looked, {name: chunk.get_tensor(name) for name in chunk.keys()}


def _gather(memory: Path, chunks: int) -> Album:
    looked: list[Looked] = []
    arrays: dict[str, list[NDArray[np.generic]]] = {"features": [], "heat": [], "prints": []}
    for number in range(chunks):
        entries, rows = _read(memory / f"{number:06d}.safetensors")
        looked += entries
        for name, parts in arrays.items():
            parts.append(rows[name])
    return Album(looked, **{name: np.concatenate(parts) for name, parts in arrays.items()})


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
