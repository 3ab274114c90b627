"""Joint success: does personalisation with dreamtune itself give the subject and a new background
in one picture?

    python -m tools.mini.joint --work DIR --mini DIR/export/mini --setting cpu64 --subjects 6

A subject is a held-out emoji, in one style, shown by five composites that vary in light, crop and
background. `prep`, `train` (LoRA) and `sample` are dreamtune's own. A picture succeeds when the
subject is the nearest of all emoji of its style, by the features of `evaluate`, and its background
is the colour asked for, which no training picture had. The same pictures are asked of four
controls: the base with the subject's own name, the base with the name of the trained emoji that
looks most like it, another subject's adapter, and the training pictures as they are.
"""

import argparse
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dreamtune.artifacts import Artifact
from dreamtune.methods import lora
from dreamtune.recipe import Chosen
from dreamtune.settings import Prep, Sample, Train
from dreamtune.stages import prep as prep_stage
from dreamtune.stages import sample as sample_stage
from dreamtune.stages import sets
from dreamtune.stages import train as train_stage
from dreamtune.stages.adapters import NONE
from dreamtune.stages.lines import Line
from dreamtune.store import Store
from tools.mini import judge
from tools.mini.artwork import Concept, load_concepts, load_masters
from tools.mini.compose import compose, random_background
from tools.mini.evaluate import SEEN_AT, VIEWS, References, background_colour, share
from tools.mini.sampling import GUIDANCE
from tools.mini.settings import SETTINGS, Settings
from tools.mini.words import COLOURS, STYLES, Picture, article

SHOWN, ASKED = 5, 2  # training pictures, and backgrounds asked for, of each subject
PHOTO = 128  # px, side of a training picture
IDENTIFIER = "[V01]"


@dataclass(frozen=True)
class Subject:
    """pictures: (SHOWN, PHOTO, PHOTO, 3) uint8. colours: those asked for."""

    concept: Concept
    style: str
    pictures: np.ndarray
    colours: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.style}-{self.concept.code}"

    def prompts(self, thing: str) -> list[str]:
        return [f"{article(thing)} on {article(colour)} background" for colour in self.colours]


def draw(concept: Concept, style: str, masters: dict[str, Image.Image], seed: int) -> Subject:
    rng = random.Random(seed)
    backgrounds = [random_background(rng) for _ in range(SHOWN)]
    shown = [Picture(style, (concept.code,), "", background) for background in backgrounds]
    pictures = np.stack([compose(picture, masters, PHOTO, rng) for picture in shown])
    had = {b.colour for b in backgrounds} | {b.second for b in backgrounds}
    had |= set(background_colour(pictures))
    colours = rng.sample([colour for colour in COLOURS if colour not in had], ASKED)
    return Subject(concept, style, pictures, tuple(colours))


class Judge:
    """Nearest emoji of a style, among all of it that there is."""

    def __init__(self, work: Path, setting: Settings, views: int) -> None:
        masters = load_masters(work, 32)
        self.concepts = [
            concept
            for concept in load_concepts(work)
            if all(f"{style}/{concept.code}" in masters for style in setting.styles)
        ]
        self.references = References(work, setting, self.concepts, views)

    def features(self, pictures: np.ndarray) -> Tensor:
        """(N, H, W, 3) uint8 -> unit vectors (N, 1280)."""
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
        rows = judge.features(self.references.network, images, size=SEEN_AT)
        return F.normalize(rows - self.references.mean, dim=1)

    def nearest(self, vectors: Tensor, style: str) -> Tensor:
        """(N, 1280) -> (N, concepts) numbers of concepts, nearest first."""
        of_style = self.references.styles == list(STYLES).index(style)
        near = vectors @ self.references.bank[of_style].T
        return self.references.codes[of_style][near.argsort(dim=1, descending=True)]

    def verdicts(self, subject: Subject, pictures: np.ndarray) -> list[tuple[bool, bool]]:
        """(is the subject, has the background) of pictures in the order of `colours`, each colour
        the same number of times.
        """
        ranked = self.nearest(self.features(pictures), subject.style)[:, 0]
        own = self.references.number[subject.concept.code]
        wanted = np.repeat(subject.colours, len(pictures) // len(subject.colours))
        grounds = background_colour(pictures)
        return [(int(r) == own, g == w) for r, g, w in zip(ranked, grounds, wanted, strict=True)]

    def twin(self, subject: Subject) -> Concept:
        """The trained concept that looks most like the subject."""
        centre = self.features(subject.pictures).mean(0, keepdim=True)
        order = self.nearest(centre, subject.style)[0].tolist()
        return next(self.concepts[i] for i in order if not self.concepts[i].held_out)


class Studio:
    """dreamtune in a store of its own."""

    def __init__(self, folder: Path, mini: Path, train: Train, sample: Sample, rank: int) -> None:
        self.folder, self.store = folder, Store.open(folder / "store")
        self.mini, self.train, self.sample = mini, train, sample
        self.method = Chosen("lora", lora.Options(rank=rank, targets=("all",)))

    def learn(self, subject: Subject) -> Artifact:
        """Photos to adapter."""
        photos = self.folder / subject.name
        photos.mkdir()
        for number, pixels in enumerate(subject.pictures):
            Image.fromarray(pixels).save(photos / f"{number}.png")
        options = Prep(
            class_word=subject.concept.category, threshold="0", keep_duplicates=True, workers=1
        )
        prepared, _ = prep_stage.run(photos, options, self.store, subject.name)
        assert prepared is not None
        return train_stage.run(
            train_stage.Run(
                self.store, [sets.whole(prepared)], self.train, self.method, subject.name
            )
        )

    def pictures(self, prompts: Sequence[str], adapter: Artifact | None) -> np.ndarray:
        """`sample.count` pictures of each prompt: (N, H, W, 3) uint8."""
        refs = [adapter.label if adapter else NONE]
        lines = [Line(prompt, self.sample) for prompt in prompts]
        made = sample_stage.run(sample_stage.Run(self.store, lines, refs, self.sample))
        files = [made.path / line["file"] for line in made.read_json("samples.json")]
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def measure(
    subjects: Sequence[Subject], studio: Studio, judging: Judge
) -> tuple[dict[str, list[tuple[bool, bool]]], list[np.ndarray]]:
    """Verdicts of dreamtune and of each control, and dreamtune's pictures of each subject."""
    adapters = [studio.learn(subject) for subject in subjects]
    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    kept = []
    for number, subject in enumerate(subjects):
        style = STYLES[subject.style][0]
        personal = subject.prompts(f"{style} {IDENTIFIER} {subject.concept.category}")
        named = subject.prompts(f"{style} {subject.concept.names[0]}")
        twin = subject.prompts(f"{style} {judging.twin(subject).names[0]}")
        made = studio.pictures(personal, adapters[number])
        copies = np.concatenate([subject.pictures] * len(subject.colours))
        shown = {
            "dreamtune": made,
            "base, the subject's name": studio.pictures(named, None),
            "base, its nearest twin's name": studio.pictures(twin, None),
            "another subject's adapter": studio.pictures(personal, adapters[number - 1]),
            "training pictures": copies,
        }
        for who, pictures in shown.items():
            found[who] += judging.verdicts(subject, pictures)
        kept.append(made)
        print(f"{number + 1} of {len(subjects)}: {subject.name}, {subject.concept.names[0]}")
    return found, kept


def table(found: dict[str, list[tuple[bool, bool]]]) -> dict[str, dict[str, str]]:
    rows = {}
    for who, verdicts in found.items():
        is_subject, has_ground = torch.tensor(verdicts).T
        rows[who] = {
            "subject": str(share(is_subject)),
            "background": str(share(has_ground)),
            "both": str(share(is_subject & has_ground)),
        }
    return rows


def sheet(subjects: Sequence[Subject], made: Sequence[np.ndarray]) -> Image.Image:
    """A column for each subject: a training picture above, then what was made, all PHOTO px."""
    columns = []
    for subject, pictures in zip(subjects, made, strict=True):
        cells = [subject.pictures[0], *pictures[:: max(1, len(pictures) // 4)][:4]]
        sized = [Image.fromarray(cell).resize((PHOTO, PHOTO)) for cell in cells]
        columns.append(np.concatenate([np.asarray(cell) for cell in sized]))
    return Image.fromarray(np.concatenate(columns, axis=1))


def choose(work: Path, setting: Settings, judging: Judge, count: int) -> list[Subject]:
    """The first `count` held-out concepts in a fixed order, the styles in turn."""
    masters = load_masters(work, PHOTO)
    held_out = [concept for concept in judging.concepts if concept.held_out]
    random.Random(23).shuffle(held_out)
    turns = [setting.styles[i % len(setting.styles)] for i in range(len(held_out))]
    pairs = zip(held_out[:count], turns, strict=False)
    return [draw(concept, style, masters, seed) for seed, (concept, style) in enumerate(pairs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mini", type=Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="cpu64")
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--count", type=int, default=4, help="pictures of each background")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--views", type=int, default=VIEWS, help="behind each reference")
    parser.add_argument("--sheet", type=Path)
    ask = parser.parse_args()
    setting = SETTINGS[ask.setting]
    judging = Judge(ask.work, setting, ask.views)
    subjects = choose(ask.work, setting, judging, ask.subjects)
    train = Train(base=str(ask.mini), steps=ask.steps, learning_rate=ask.learning_rate)
    sample = Sample(base=str(ask.mini), count=ask.count, guidance=ask.guidance)
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Path(folder), ask.mini, train, sample, ask.rank)
        found, made = measure(subjects, studio, judging)
    if ask.sheet:
        sheet(subjects, made).save(ask.sheet, optimize=True)
    facts: dict[str, Any] = {"emoji of a style": len(judging.concepts), **table(found)}
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
