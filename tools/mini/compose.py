"""Composites: emoji masters placed on coloured, patterned and simple scenic backgrounds. PIL and
numpy only.
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.mini.words import COLOURS, PATTERNS, RELATIONS, SCENES, Background, Picture

Rgb = tuple[int, int, int]

Painter = Callable[..., Image.Image]


def random_background(rng: random.Random) -> Background:
    """70 % plain colours, 10 % two-colour patterns, 20 % scenes."""
    draw = rng.random()
    if draw < 0.7:
        return Background("plain", rng.choice(list(COLOURS)))
    if draw < 0.8:
        return Background(rng.choice(list(PATTERNS)), *rng.sample(list(COLOURS), 2))
    return Background(rng.choice(list(SCENES)))


def random_picture(
    styles: Sequence[str], codes: Sequence[str], pairs: float, rng: random.Random
) -> Picture:
    """pairs: share of pictures with two objects."""
    chosen = tuple(rng.sample(codes, 2 if rng.random() < pairs else 1))
    where = rng.choice(list(RELATIONS)) if len(chosen) == 2 else ""
    return Picture(rng.choice(styles), chosen, where, random_background(rng))


def compose(
    picture: Picture, masters: dict[str, Image.Image], size: int, rng: random.Random
) -> np.ndarray:
    """(size, size, 3) uint8 sRGB. masters: 'style/code' -> RGBA, at least as large as they are
    drawn.
    """
    canvas = paint_background(picture.background, size, rng)
    for code, (x, y, scale) in zip(picture.codes, _places(picture, rng), strict=True):
        _place(canvas, masters[f"{picture.style}/{code}"], x, y, scale, rng)
    return light(np.asarray(canvas), rng)


def paint_background(background: Background, size: int, rng: random.Random) -> Image.Image:
    if background.kind == "plain":
        return _plain(_shade(background.colour, rng), size, rng)
    colours = [_shade(name, rng) for name in (background.colour, background.second) if name]
    return PAINTERS[background.kind](size, rng, *colours)


def light(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Now and then a soft light from one side over the whole picture, or all of it darker or
    brighter.
    """
    if rng.random() < 0.7:
        return pixels
    ramp = _ramp(pixels.shape[0], rng.uniform(0, 2 * math.pi)) * rng.uniform(0.0, 0.25)
    gain = (rng.uniform(0.82, 1.1) + ramp)[..., None]
    return (pixels * gain).clip(0, 255).astype(np.uint8)


def _places(picture: Picture, rng: random.Random) -> list[tuple[float, float, float]]:
    """Centre x, centre y and side of every object, as fractions of the picture."""
    if len(picture.codes) == 1:
        # Large and near the middle: the fewer places a thing can have, the sooner it is learned.
        scale = rng.uniform(0.7, 0.95)
        room = 0.4 * (1 - scale)
        return [(0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room), scale)]
    dx, dy = {"right": (1, 0), "left": (-1, 0), "below": (0, 1), "above": (0, -1)}[picture.where]
    step, scale = rng.uniform(0.21, 0.24), rng.uniform(0.4, 0.48)
    jitter = [rng.uniform(-0.04, 0.04) for _ in range(4)]
    first = (0.5 - dx * step + jitter[0], 0.5 - dy * step + jitter[1], scale)
    return [first, (0.5 + dx * step + jitter[2], 0.5 + dy * step + jitter[3], scale)]


def _place(
    canvas: Image.Image, master: Image.Image, x: float, y: float, scale: float, rng: random.Random
) -> None:
    size = canvas.width
    side = max(8, round(scale * size))
    angle = rng.gauss(0, 4)
    # Premultiplied ('RGBa'), else the colour of invisible pixels bleeds into the edge.
    thing = master.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    thing = thing.rotate(angle, Image.Resampling.BICUBIC).convert("RGBA")
    left, top = round(x * size - side / 2), round(y * size - side / 2)
    if rng.random() < 0.25:
        _shadow(canvas, thing, left, top, rng)
    canvas.paste(thing, (left, top), thing)


def _shadow(
    canvas: Image.Image, thing: Image.Image, left: int, top: int, rng: random.Random
) -> None:
    depth = canvas.width * rng.uniform(0.015, 0.04)
    alpha = thing.getchannel("A").filter(ImageFilter.GaussianBlur(depth))
    alpha = alpha.point([round(value * 0.4) for value in range(256)])
    shift = round(depth)
    canvas.paste((0, 0, 0), (left + rng.choice((-shift, 0, shift)), top + shift), alpha)


def _shade(name: str, rng: random.Random) -> Rgb:
    """A shade of a named colour, near enough to keep the name."""
    gain = rng.gauss(1, 0.04)
    red, green, blue = (
        min(255, max(0, round(value * gain + rng.gauss(0, 5)))) for value in COLOURS[name]
    )
    return red, green, blue


def _ramp(size: int, angle: float) -> np.ndarray:
    """(size, size) fp32 in [-1, 1], rising along `angle`."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    ramp = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
    return ramp / np.abs(ramp).max()


def _plain(colour: Rgb, size: int, rng: random.Random) -> Image.Image:
    pixels: np.ndarray = np.broadcast_to(np.array(colour, np.float32), (size, size, 3))
    if rng.random() < 0.5:
        ramp = _ramp(size, rng.uniform(0, 2 * math.pi))[..., None] * rng.uniform(0.03, 0.12)
        pixels = pixels * (1 + ramp)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _vertical(size: int, top: Rgb, bottom: Rgb, start: int, stop: int, pixels: np.ndarray) -> None:
    """Fill rows start..stop with a gradient from `top` to `bottom`."""
    mix = np.linspace(0, 1, max(1, stop - start), dtype=np.float32)[:, None, None]
    pixels[start:stop] = (1 - mix) * np.array(top, np.float32) + mix * np.array(bottom, np.float32)


def _grain(size: int, rng: random.Random, strength: float) -> np.ndarray:
    noise = np.random.default_rng(rng.getrandbits(32))
    return noise.normal(0, strength, (size, size, 1)).astype(np.float32)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _stripes(size: int, rng: random.Random, first: Rgb, second: Rgb) -> Image.Image:
    ramp = _ramp(size, rng.choice((0, math.pi / 4, math.pi / 2)))
    waves = rng.choice((3, 4, 5))
    mask = np.sin(math.pi * waves * ramp + rng.uniform(0, 6)) > 0
    return Image.fromarray(np.where(mask[..., None], first, second).astype(np.uint8))


def _dots(size: int, rng: random.Random, first: Rgb, second: Rgb) -> Image.Image:
    count, phase = rng.choice((4, 5, 6)), rng.random()
    axis = (np.arange(size, dtype=np.float32) / size * count + phase) % 1 - 0.5
    mask = axis[None, :] ** 2 + axis[:, None] ** 2 < rng.uniform(0.06, 0.1)
    return Image.fromarray(np.where(mask[..., None], second, first).astype(np.uint8))


def _checks(size: int, rng: random.Random, first: Rgb, second: Rgb) -> Image.Image:
    axis = np.arange(size) * rng.choice((4, 6, 8)) // size
    mask = (axis[None, :] + axis[:, None]) % 2 == 0
    return Image.fromarray(np.where(mask[..., None], first, second).astype(np.uint8))


def _meadow(size: int, rng: random.Random) -> Image.Image:
    pixels, horizon = np.empty((size, size, 3), np.float32), round(size * rng.uniform(0.45, 0.65))
    _vertical(size, (90, 165, 235), (190, 225, 250), 0, horizon, pixels)
    _vertical(size, (120, 185, 75), (60, 135, 45), horizon, size, pixels)
    pixels[horizon:] += _grain(size, rng, 8)[horizon:]
    return _image(pixels)


def _night(size: int, rng: random.Random) -> Image.Image:
    pixels = np.empty((size, size, 3), np.float32)
    _vertical(size, (12, 16, 48), (44, 48, 105), 0, size, pixels)
    canvas = _image(pixels)
    pen, dot = ImageDraw.Draw(canvas), max(1, size // 64)
    for _ in range(rng.randint(12, 24)):
        x, y = rng.randrange(size), rng.randrange(size)
        pen.rectangle((x, y, x + dot - 1, y + dot - 1), fill=(250, 248, 215))
    return canvas


def _snow(size: int, rng: random.Random) -> Image.Image:
    pixels, horizon = np.empty((size, size, 3), np.float32), round(size * rng.uniform(0.4, 0.6))
    _vertical(size, (165, 185, 205), (215, 225, 235), 0, horizon, pixels)
    _vertical(size, (240, 244, 250), (222, 232, 245), horizon, size, pixels)
    canvas = _image(pixels)
    pen, flake = ImageDraw.Draw(canvas), max(1, size // 48)
    for _ in range(rng.randint(14, 26)):
        x, y = rng.randrange(size), rng.randrange(size)
        pen.ellipse((x, y, x + flake, y + flake), fill=(255, 255, 255))
    return canvas


def _beach(size: int, rng: random.Random) -> Image.Image:
    pixels = np.empty((size, size, 3), np.float32)
    sea, sand = round(size * rng.uniform(0.3, 0.4)), round(size * rng.uniform(0.5, 0.6))
    _vertical(size, (130, 200, 245), (200, 232, 250), 0, sea, pixels)
    _vertical(size, (30, 130, 190), (70, 190, 205), sea, sand, pixels)
    _vertical(size, (240, 218, 165), (225, 195, 135), sand, size, pixels)
    pixels[sand:] += _grain(size, rng, 5)[sand:]
    return _image(pixels)


def _table(size: int, rng: random.Random) -> Image.Image:
    pixels, edge = np.empty((size, size, 3), np.float32), round(size * rng.uniform(0.3, 0.5))
    _vertical(size, (222, 212, 198), (206, 194, 178), 0, edge, pixels)
    _vertical(size, (165, 110, 62), (140, 88, 46), edge, size, pixels)
    rows = np.arange(size, dtype=np.float32)[:, None, None] / size
    waves = np.sin(rows * rng.uniform(60, 90) + 2 * np.sin(rows * 9)) * 9
    pixels[edge:] += waves[edge:] + _grain(size, rng, 4)[edge:]
    return _image(pixels)


PAINTERS: dict[str, Painter] = {
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "meadow": _meadow,
    "night": _night,
    "snow": _snow,
    "beach": _beach,
    "table": _table,
}
