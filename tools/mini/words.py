"""The small language of `mini`: what a picture shows, as data, and the captions that say it."""

import random
from dataclasses import dataclass

STYLES = {
    "3d": ("3d", "3d rendered", "glossy 3d"),
    "flat": ("flat", "flat vector", "flat graphic"),
    "cartoon": ("cartoon", "drawn"),
}

# Centres of the twelve named background colours, sRGB.
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 214, 50),
    "green": (60, 160, 70),
    "teal": (30, 150, 150),
    "blue": (45, 95, 210),
    "purple": (120, 65, 180),
    "pink": (245, 140, 185),
    "brown": (125, 80, 50),
    "gray": (140, 142, 148),
    "black": (22, 22, 26),
    "white": (246, 246, 246),
}

PATTERNS = {"stripes": "striped", "dots": "dotted", "checks": "checked"}

SCENES = {
    "meadow": ("on green grass under a blue sky", "in a meadow", "on the grass"),
    "night": ("at night", "at night under the stars", "under a starry night sky"),
    "snow": ("in the snow", "on snow", "in a snowy field"),
    "beach": ("on the beach", "on a sandy beach by the sea", "at the beach"),
    "table": ("on a wooden table", "on a table made of wood", "on a wooden desk"),
}

RELATIONS = {"right": "next to", "below": "above", "left": "next to", "above": "below"}

IDENTIFIERS = tuple(f"<id{number:02d}>" for number in range(32))

PREFIXES = ("", "", "", "a picture of ", "a photo of ", "an image of ", "an icon of ")


@dataclass(frozen=True)
class Background:
    """kind: 'plain', a pattern or a scene. Patterns have a second colour; scenes have none."""

    kind: str
    colour: str = ""
    second: str = ""


@dataclass(frozen=True)
class Picture:
    """One composite: style, one or two concepts by code, where the second one is seen from the
    first, background.
    """

    style: str
    codes: tuple[str, ...]
    where: str
    background: Background


def article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def background_words(background: Background, rng: random.Random) -> str:
    """'on a red background', 'on a red and white striped background', 'in the snow'."""
    if background.kind in SCENES:
        return rng.choice(SCENES[background.kind])
    ground = rng.choice(("background", "background", "backdrop"))
    colour = _grey(background.colour, rng)
    if background.kind == "plain":
        return rng.choice(
            (f"on {article(colour)} {ground}", f"on {article(colour)} {ground}", f"on {colour}")
        )
    second = _grey(background.second, rng)
    return f"on {article(colour)} and {second} {PATTERNS[background.kind]} {ground}"


def caption(picture: Picture, nouns: list[str], rng: random.Random, identifier: float = 0.1) -> str:
    """A caption `[style] [identifier] noun [relation noun] [background]`, parts left out at random.

    nouns: one word or phrase for each of the picture's codes (name, synonym or category), chosen by
    the caller. identifier: probability of a reserved identifier before the first noun; it means
    nothing, so that it can be bound to something later.
    """
    style = rng.choice(STYLES[picture.style]) if rng.random() < 0.85 else ""
    place = background_words(picture.background, rng) if rng.random() < 0.9 else ""
    words = list(nouns)
    if rng.random() < identifier:
        words[0] = f"{rng.choice(IDENTIFIERS)} {words[0]}"
    if style and rng.random() < 0.85:
        words[0], style = f"{style} {words[0]}", ""
    things = [article(word) if rng.random() < 0.8 else word for word in words]
    text = things[0]
    if len(things) == 2:
        text = f"{text} {RELATIONS[picture.where]} {things[1]}"
    text = rng.choice(PREFIXES) + " ".join(part for part in (text, place) if part)
    return f"{text}, {style} style" if style else text


def _grey(colour: str, rng: random.Random) -> str:
    return rng.choice(("gray", "grey")) if colour == "gray" else colour
