"""prep: a folder of photos -> the photos worth training on, upright, captioned, with reasons.

    images/0007.jpg    number 7 of the folder's photos by name, cleaned: sRGB, upright, no EXIF
    samples.jsonl      file, sha256, size, caption, focus box, weight, source, similarity
    rejected.jsonl     file, code, detail, similarity of each photo that was set aside
    concept.json       identifier, class word, kind
    contact.png        all of it to look at

Nothing in the input folder is touched. Chunks of finished work are kept beside the draft, so that
a run that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from .. import console, fsops, recipe
from ..artifacts import CHECKPOINTS, Artifact, Draft, Store, slug
from ..data import captions, encoder, focus, similarity, walk
from ..data.album import Album, Limits, Looked, cores, look
from ..data.captions import Concept
from ..data.photos import Seeing
from ..errors import NotFound, Usage
from ..settings import Prep
from . import contact

VERSION = 1


@dataclass(frozen=True)
class Verdict:
    """What becomes of one photo; `code` and `detail` say why it is set aside."""

    looked: Looked
    similarity: float | None
    code: str
    detail: str


def run(folder: Path, options: Prep, store: Store, name: str | None = None) -> Artifact:
    """Prepare `folder`. NotFound without a folder, Usage when no photo can be used."""
    found = find(folder, options)
    name = name or slug(folder.resolve().name)
    concept = Concept(options.identifier, class_word(options), options.kind)
    settled = recipe.to_dict(options) | {"class_word": concept.class_word}
    settled.pop("workers")  # changes the time, not the result
    settings = {"prep": settled, "inputs": inputs_digest(folder, found)}
    key = store.key("prep", VERSION, settings, [])
    finished = store.find(key)
    if finished is not None:
        console.say(f"nothing has changed: {finished.label} is still good")
        return store.reuse(finished)
    with store.draft("prep", name, key, settings, [], keep=True) as draft:
        return _fill(draft, folder, found, options, concept)


def find(folder: Path, options: Prep) -> walk.Found:
    """The folder's photos; a clear error when there is no folder or nothing in it."""
    if not folder.exists():
        raise NotFound(f"no folder {folder}")
    if not folder.is_dir():
        raise Usage(f"{folder} is a file", fix="give the folder with your photos")
    found = walk.find(folder, options.follow_symlinks)
    if not found.photos:
        why = f"{len(found.refused)} files cannot be used" if found.refused else "it is empty"
        raise Usage(f"no photos in {folder}", why=why)
    return found


def class_word(options: Prep) -> str:
    if options.class_word:
        return options.class_word
    word = "object" if options.kind == "subject" else "picture"
    console.warn(f"no --class given, so captions say {word!r}")
    return word


def inputs_digest(folder: Path, found: walk.Found) -> str:
    """Hash of the names and bytes of everything in the folder that can matter."""
    digest = hashlib.sha256()
    for name in sorted([*found.photos, *found.ignored]):
        try:
            content = fsops.hash_file(folder / name)
        except OSError as e:
            content = f"unreadable: {e.errno}"
        digest.update(json.dumps([name, content]).encode())
    for refused in found.refused:
        digest.update(json.dumps([refused.name, refused.code]).encode())
    return digest.hexdigest()


def _fill(
    draft: Draft, folder: Path, found: walk.Found, options: Prep, concept: Concept
) -> Artifact:
    started = time.monotonic()
    album = _look(draft, folder, found, options)
    near = closeness(album, encoder.load(options.clip).calibration, options.kind)
    verdicts = judge(album, near, options)
    kept = [v for v in verdicts if not v.code]
    aside = [v for v in verdicts if v.code]
    if not kept:
        report(kept, aside, found)
        raise Usage("no photo is left", why=f"all {len(aside)} were set aside")
    heat = {entry.name: row for entry, row in zip(album.looked, album.heat, strict=True)}
    boxes = {v.looked.name: focus.box(heat[v.looked.name]) for v in kept}
    template = options.caption or captions.TEMPLATES[concept.kind]
    lines = [_sample(v, boxes[v.looked.name], captions.fill(template, concept)) for v in kept]
    refused = [(r.name, r.code, r.detail, None) for r in found.refused]
    refused += [(v.looked.name, v.code, v.detail, v.similarity) for v in aside]
    tiles = _tiles(draft.path / "images", kept, aside, boxes)
    fsops.write_bytes(draft.path / "contact.png", contact.sheet(concept.class_word, *tiles))
    for verdict in aside:
        if verdict.looked.picture:
            fsops.remove(draft.path / "images" / verdict.looked.picture)
    _write_lines(draft.path / "samples.jsonl", lines)
    fields = ("file", "code", "detail", "similarity")
    _write_lines(
        draft.path / "rejected.jsonl", [dict(zip(fields, r, strict=True)) for r in refused]
    )
    fsops.write_json(draft.path / "concept.json", concept.to_dict())
    report(kept, aside, found)
    return draft.commit({"seconds": round(time.monotonic() - started, 3)})


def _look(draft: Draft, folder: Path, found: walk.Found, options: Prep) -> Album:
    seeing = Seeing(
        max_side=options.max_size,
        max_pixels=round(options.max_megapixels * 1e6),
        min_side=options.min_size,
        max_aspect=options.max_aspect,
        background=options.background,
        frames=options.frames,
    )
    limits = Limits(options.timeout, int(options.memory * 2**30), options.workers or cores())
    images = fsops.make_folder(draft.path / "images")
    memory = fsops.make_folder(draft.path / CHECKPOINTS)
    with console.progress(len(found.photos), "photos") as bar:
        return look(
            folder,
            found.photos,
            images,
            memory,
            seeing,
            limits,
            lambda: encoder.load(options.clip),
            bar.advance,
        )


def closeness(album: Album, calibration: similarity.Calibration, kind: str) -> dict[str, float]:
    """Similarity to the centre of the set, by name, of the photos that could be decoded."""
    good = [i for i, entry in enumerate(album.looked) if not entry.code]
    if kind == "style" or not good:
        return {}
    vectors = calibration.embed(album.features[good].astype(np.float32))
    values = similarity.similarities(vectors, calibration)
    return {album.looked[i].name: round(float(v), 4) for i, v in zip(good, values, strict=True)}


def judge(album: Album, near: dict[str, float], options: Prep) -> list[Verdict]:
    """A verdict for each photo."""
    line = float(options.threshold) if options.threshold != "auto" else _auto(near)
    low = {name for name, value in near.items() if value < line}
    if len(low) > len(near) / 2:
        console.warn(f"{len(low)} of {len(near)} photos differ from the rest: no centre, all kept")
        low = set()
    verdicts = []
    for entry in album.looked:
        value = near.get(entry.name)
        code, detail = entry.code, entry.detail
        if not code and entry.name in low:
            code, detail = "similarity.low", f"{value:.2f}, under {line:.2f}"
        if _matches(entry.name, options.drop):
            code, detail = "user.drop", "asked for with --drop"
        verdicts.append(Verdict(entry, value, code, detail))
    return verdicts


def _auto(near: dict[str, float]) -> float:
    return similarity.relative_line(np.array(list(near.values()) or [1.0], np.float32))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    base = name.rsplit("/", 1)[-1]
    return any(fnmatchcase(name, p) or fnmatchcase(base, p) for p in patterns)


def _sample(verdict: Verdict, box: focus.Box, caption: str) -> dict[str, Any]:
    looked = verdict.looked
    sample = {
        "file": f"images/{looked.picture}",
        "sha256": looked.sha256,
        "size": list(looked.size),
        "caption": caption,
        "focus": list(box),
        "weight": 1.0,
        "source": looked.name,
        "similarity": verdict.similarity,
    }
    return sample | ({"notes": looked.notes} if looked.notes else {})


def _tiles(
    images: Path, kept: list[Verdict], aside: list[Verdict], boxes: dict[str, focus.Box]
) -> tuple[list[contact.Tile], list[contact.Tile]]:
    def tile(v: Verdict) -> contact.Tile:
        picture = images / v.looked.picture if v.looked.picture else None
        box = boxes.get(v.looked.name)
        return contact.Tile(v.looked.name, picture, v.similarity, v.code, v.detail, box)

    return [tile(v) for v in kept], [tile(v) for v in aside]


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    fsops.write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def report(kept: list[Verdict], aside: list[Verdict], found: walk.Found) -> None:
    """What was set aside and why, on stderr."""
    rows = [(r.name, r.code, r.detail) for r in found.refused]
    rows += [(v.looked.name, v.code, v.detail) for v in aside]
    if rows:
        console.table("set aside (nothing was deleted):", ("file", "code", "why"), rows)
    counts = Counter(code for _, code, _ in rows)
    words = ", ".join(f"{n} {code}" for code, n in counts.most_common())
    console.say(f"{len(kept)} photos kept" + (f", {len(rows)} set aside: {words}" if rows else ""))
