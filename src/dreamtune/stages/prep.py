"""prep: a folder of photos -> the photos worth training on, upright, captioned, with reasons.

    images/0007.jpg    number 7 of the folder's photos by name, cleaned: sRGB, upright, no EXIF
    samples.jsonl      file, sha256, size, caption, focus box, weight, source, similarity
    rejected.jsonl     file, code, detail, similarity of each photo that was set aside
    concept.json       identifier, class word, kind
    contact.png        all of it to look at

Nothing in the input folder is touched. Finished chunks of work are kept beside the draft, so that
a run that was killed goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .. import console, floors, fsops, recipe
from ..artifacts import CHECKPOINTS, Artifact
from ..data import album, captioner, captions, encoder, focus, intake, judge, zeroshot
from ..data.captions import Concept
from ..data.examine import read
from ..data.intake import Intake
from ..data.judge import Verdict
from ..data.photos import Rejected, Seeing
from ..errors import Usage, suggest
from ..names import check_name, slug
from ..settings import Prep
from ..store import Store
from . import contact

VERSION = 2
SURE = 0.33  # probability from which a guessed class is used; of 20 subjects 12 right, 2 wrong
SHOWN = 40  # rows of the table on stderr; rejected.jsonl has them all


@dataclass(frozen=True)
class Outcome:
    """Kept photos as lines of samples.jsonl, the others as lines of rejected.jsonl."""

    concept: Concept
    samples: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    remarks: list[str] = field(default_factory=list)
    reused: bool = False

    @classmethod
    def read(cls, artifact: Artifact) -> Outcome:
        """The outcome that a finished artifact holds."""
        concept = Concept(**artifact.read_json("concept.json"))
        samples, rejected = (_read_lines(artifact.path / f) for f in (SAMPLES, REJECTED))
        return cls(concept, samples, rejected, reused=True)

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self.concept),
            "kept": len(self.samples),
            "set_aside": len(self.rejected),
            "codes": dict(Counter(line["code"] for line in self.rejected)),
            "rejected": self.rejected,
            "remarks": self.remarks,
        }


SAMPLES, REJECTED, IMAGES = "samples.jsonl", "rejected.jsonl", "images"


def run(
    source: Path, options: Prep, store: Store, name: str | None = None, dry_run: bool = False
) -> tuple[Artifact | None, Outcome]:
    """Prepare a folder, or a kohya dataset TOML; (artifact, what was found).

    dry_run: look at everything, write nothing into the store, and return no artifact. NotFound
    without a folder, Usage when no photo is in it or none is left.
    """
    floors.require()
    name = None if name is None else check_name(name)
    taken = intake.take(source, options.identifier, options.caption_ext, options.follow_symlinks)
    check(options, taken)
    settled = {**recipe.to_dict(options), "class_word": options.class_word or taken.class_word()}
    settled.pop("workers")  # changes the time, not the result
    settings = {"prep": settled, "inputs": digest(taken, options)}
    key = store.key("prep", VERSION, settings, [])
    finished = store.find(key)
    if finished is not None:
        outcome = Outcome.read(finished)
        report(outcome)
        console.say(f"nothing has changed since {finished.label}, so it is returned")
        return finished if dry_run else store.reuse(finished), outcome
    if dry_run:
        with TemporaryDirectory(prefix="dreamtune-") as scratch:
            outcome = fill(Path(scratch), taken, options)
        report(outcome)
        return None, outcome
    with store.draft("prep", name or slug(taken.name), key, settings, [], keep=True) as draft:
        started = time.monotonic()
        outcome = fill(draft.path, taken, options)
        report(outcome)
        return draft.commit({"seconds": round(time.monotonic() - started, 3)}), outcome


def check(options: Prep, taken: Intake) -> None:
    """Everything that can be wrong with the settings, before any work."""
    captions.fill(templates(options)[0], Concept(options.identifier, ""))
    captions.replacements(options.caption_replace)
    if options.captioner:
        captioner.program(options.captioner)
    names = taken.found.photos
    for flag, patterns in (("--keep", options.keep), ("--drop", options.drop)):
        for pattern in patterns:
            if not any(judge.matches(name, [pattern]) for name in names):
                raise Usage(f"{flag} {pattern!r} matches no photo", fix=suggest(pattern, names))


def templates(options: Prep) -> tuple[str, ...]:
    return (options.caption,) if options.caption else captions.TEMPLATES[options.kind]


def class_word(looked: album.Album, kept: Sequence[Verdict], options: Prep, taken: Intake) -> str:
    """The class that was given, or that folders name, or what the photos seem to show.

    A guess is always said; a word that is never wrong takes the place of an unsure one.
    """
    if options.class_word or taken.class_word():
        return options.class_word or taken.class_word() or ""
    word = "object" if options.kind == "subject" else "picture"
    share = 0.0
    if options.kind == "subject" and options.clip == encoder.BUILTIN:
        rows = {entry.name: row for entry, row in zip(looked.looked, looked.features, strict=True)}
        named = zeroshot.classify(np.stack([rows[v.looked.name] for v in kept]))
        # Words for the same thing, as bag and backpack, tie: the first says most.
        share = sum(p for _, p in named if abs(p - named[0][1]) < 1e-4)
        word = named[0][0] if share >= SURE else word
    why = f"looks like it, {share:.0%}" if share >= SURE else "unsure what it is"
    console.warn(f"no --class given, so captions say {word!r} ({why})")
    return word


def digest(taken: Intake, options: Prep) -> str:
    """Hash of everything that goes in: names and bytes of photos and texts, and the encoder."""
    parts: list[Any] = [[r.name, r.code] for r in taken.found.refused]
    for name, path in sorted(taken.found.paths.items()):
        try:
            parts.append([name, hashlib.sha256(read(path)).hexdigest()])
        except Rejected as fault:
            parts.append([name, fault.code, fault.detail])
    if options.clip == encoder.BUILTIN:
        files = sorted(encoder.builtin_folder().glob("*.safetensors"))
        parts += [[file.name, fsops.hash_file(file)] for file in files]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def fill(folder: Path, taken: Intake, options: Prep) -> Outcome:
    """Do the work and write the payload into `folder`."""
    images = fsops.make_folder(folder / IMAGES)
    looked, calibration = look(folder, taken, options)
    judgement = judge.judge(looked, calibration, rules(options))
    kept = [v for v in judgement.verdicts if not v.code]
    aside = [v for v in judgement.verdicts if v.code]
    rejected = [_rejected(r.name, r.code, r.detail, None) for r in taken.found.refused]
    rejected += [_rejected(v.looked.name, v.code, v.detail, v.similarity) for v in aside]
    if not kept:
        report(Outcome(Concept(options.identifier, "", options.kind), [], rejected))
        raise Usage("no photo is left", why=f"all {len(rejected)} were set aside")
    word = class_word(looked, kept, options, taken)
    concept = Concept(options.identifier, word, options.kind)
    words = caption(kept, images, taken, options, concept)
    heat = {entry.name: row for entry, row in zip(looked.looked, looked.heat, strict=True)}
    samples = [_sample(v, words, focus.box(heat[v.looked.name]), taken) for v in kept]
    remarks = taken.remarks + judgement.remarks + captions.doubts(words, concept.identifier)
    outcome = Outcome(concept, samples, rejected, remarks + _notes(kept))
    draw(folder, outcome, aside, judgement.line)
    for verdict in aside:
        if verdict.looked.picture:
            fsops.remove(images / verdict.looked.picture)
    _write_lines(folder / SAMPLES, samples)
    _write_lines(folder / REJECTED, rejected)
    fsops.write_json(folder / "concept.json", dataclasses.asdict(concept))
    return outcome


def look(folder: Path, taken: Intake, options: Prep) -> tuple[album.Album, Any]:
    """Decode and encode every photo; (album, the encoder's calibration)."""
    seeing = Seeing(
        max_side=options.max_size,
        max_pixels=round(options.max_megapixels * 1e6),
        min_side=options.min_size,
        max_aspect=options.max_aspect,
        background=options.background,
        frames=options.frames,
    )
    lenient = dataclasses.replace(seeing, min_side=1, max_aspect=float("inf"))
    jobs = [
        album.Job(name, taken.found.paths[name], lenient if wanted else seeing)
        for name in taken.found.photos
        for wanted in [judge.matches(name, options.keep)]
    ]
    workers = options.workers or encoder.cores()
    limits = album.Limits(options.timeout, int(options.memory * 2**30), workers)
    memory = fsops.make_folder(folder / CHECKPOINTS)
    with console.progress(len(jobs), "photos") as bar:
        return album.look(
            jobs, folder / IMAGES, memory, limits, lambda: encoder.load(options.clip), bar.advance
        )


def rules(options: Prep) -> judge.Rules:
    return judge.Rules(
        threshold=None if options.threshold == "auto" else float(options.threshold),
        centred=options.kind == "subject",
        copies=options.keep_duplicates,
        blur=options.blur,
        keep=options.keep,
        drop=options.drop,
    )


def caption(
    kept: Sequence[Verdict], images: Path, taken: Intake, options: Prep, concept: Concept
) -> dict[str, str]:
    """Photo -> caption, for the photos that are kept."""
    names = [v.looked.name for v in kept]
    pictures = {v.looked.name: images / v.looked.picture for v in kept}
    wording = captions.Wording(
        templates(options),
        options.caption_missing,
        options.caption_prefix,
        options.caption_suffix,
        captions.replacements(options.caption_replace),
    )
    describe = None
    if options.captioner:
        command = options.captioner

        def describe(photos: Sequence[str]) -> dict[str, str]:
            return captioner.describe(command, {photo: pictures[photo] for photo in photos})

    concepts = {name: taken.concept(name, concept) for name in names}
    return captions.compose(names, taken.captions, concepts, wording, describe)


def draw(folder: Path, outcome: Outcome, aside: Sequence[Verdict], line: float | None) -> None:
    """The contact sheet."""
    pictures = {v.looked.name: v.looked.picture for v in aside if v.looked.picture}
    kept = [
        contact.Tile(s["source"], folder / s["file"], s["similarity"], focus=tuple(s["focus"]))
        for s in outcome.samples
    ]
    others = [
        contact.Tile(
            r["file"],
            folder / IMAGES / pictures[r["file"]] if r["file"] in pictures else None,
            r["similarity"],
            r["code"],
            r["detail"],
        )
        for r in outcome.rejected
    ]
    concept = outcome.concept
    # Pictures first: files that show nothing say the same wherever they stand.
    others.sort(key=lambda tile: tile.picture is None)
    title = f"{concept.identifier} {concept.class_word}"
    fsops.write_bytes(folder / "contact.png", contact.sheet(title, kept, others, line))


def report(outcome: Outcome) -> None:
    """What was set aside and why, on stderr."""
    rows = [(r["file"], r["code"], r["detail"]) for r in outcome.rejected]
    if rows:
        console.table("set aside (nothing is deleted):", ("file", "code", "why"), rows[:SHOWN])
    if len(rows) > SHOWN:
        console.say(f"… and {len(rows) - SHOWN} more, in {REJECTED}")
    for remark in outcome.remarks:
        console.warn(remark)
    console.say(f"{len(outcome.samples)} photos kept, {len(rows)} set aside")


def _notes(kept: Sequence[Verdict]) -> list[str]:
    """Remarks about many photos at once."""
    grey = sum("grey" in v.looked.notes for v in kept)
    return [f"{grey} of {len(kept)} photos are grey"] if grey * 5 > len(kept) else []


def _sample(
    verdict: Verdict, words: dict[str, str], box: focus.Box, taken: Intake
) -> dict[str, Any]:
    looked = verdict.looked
    sample = {
        "file": f"{IMAGES}/{looked.picture}",
        "sha256": looked.sha256,
        "size": list(looked.size),
        "caption": words[looked.name],
        "focus": list(box),
        "weight": taken.weight(looked.name),
        "source": looked.name,
        "similarity": verdict.similarity,
    }
    return sample | ({"notes": looked.notes} if looked.notes else {})


def _rejected(name: str, code: str, detail: str, similarity: float | None) -> dict[str, Any]:
    return {"file": name, "code": code, "detail": detail, "similarity": similarity}


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    fsops.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
