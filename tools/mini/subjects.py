"""Subjects to personalise with, and who judges the pictures.

A subject is a held-out emoji, in one style, shown by five composites that vary in light, crop and
background, and two backgrounds to ask for that no training picture has.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tools.mini import judge
from tools.mini.artwork import Concept, load_masters
from tools.mini.compose import compose, random_background
from tools.mini.evaluate import SEEN_AT, References, background_colour, every_concept
from tools.mini.settings import Settings
from tools.mini.words import COLOURS, STYLES, Picture, article

SHOWN, ASKED = 5, 2  # training pictures, and backgrounds asked for, of each subject
PHOTO = 128  # px, side of a training picture


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
        self.concepts = every_concept(work, setting)
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


def choose(work: Path, setting: Settings, judging: Judge, count: int) -> list[Subject]:
    """The first `count` held-out concepts in a fixed order, the styles in turn."""
    masters = load_masters(work, PHOTO)
    held_out = [concept for concept in judging.concepts if concept.held_out]
    random.Random(23).shuffle(held_out)
    turns = [setting.styles[i % len(setting.styles)] for i in range(len(held_out))]
    pairs = zip(held_out[:count], turns, strict=False)
    return [draw(concept, style, masters, seed) for seed, (concept, style) in enumerate(pairs)]
