"""All pictures of a run on one sheet: a row for each prompt, or two settings against each other."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, SOFT = "white", "#1f2328", "#57606a"
LONGEST = 8192  # px, of a sheet's side; larger pictures are scaled down
SMALLEST = 40  # px, of a picture on it

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Block:
    """Rows of picture files; with labels, one for each column and row, and a title."""

    rows: Sequence[Sequence[Path]]
    title: str = ""
    across: Sequence[str] = ()
    down: Sequence[str] = ()


def square(files: Sequence[Path]) -> Block:
    """The pictures of a single prompt, laid out in a square."""
    across = math.ceil(math.sqrt(len(files)))
    return Block([files[i : i + across] for i in range(0, len(files), across)])


def sheet(blocks: Sequence[Block]) -> Image.Image:
    """Blocks below one another. Pictures keep their pixels where the sheet is not too large."""
    sizes = [_size(file) for block in blocks for row in block.rows for file in row]
    tile = max(width for width, _ in sizes), max(height for _, height in sizes)
    columns = max(len(row) for block in blocks for row in block.rows)
    rows = sum(len(block.rows) for block in blocks)
    scale = min(1.0, LONGEST / (columns * tile[0]), LONGEST / (rows * tile[1]))
    tile = (max(round(tile[0] * scale), SMALLEST), max(round(tile[1] * scale), SMALLEST))
    drawn = [_draw(block, tile) for block in blocks]
    gap = _gap(tile)
    width = max(image.width for image in drawn)
    height = sum(image.height for image in drawn) + gap * (len(drawn) - 1)
    page = Image.new("RGB", (width, height), PAPER)
    top = 0
    for image in drawn:
        page.paste(image, (0, top))
        top += image.height + gap
    return page


def _draw(block: Block, tile: tuple[int, int]) -> Image.Image:
    """One block, its words in margins that are as wide as they need."""
    font, gap = _font(tile), _gap(tile)
    line = math.ceil(sum(font.getmetrics())) if isinstance(font, ImageFont.FreeTypeFont) else 12
    left = max((math.ceil(font.getlength(words)) + 2 * gap for words in block.down), default=0)
    top = (line + gap) * (bool(block.title) + bool(block.across))
    columns = max(len(row) for row in block.rows)
    width = left + columns * (tile[0] + gap) - gap
    height = top + len(block.rows) * (tile[1] + gap) - gap
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    if block.title:
        draw.text((0, 0), _fit(block.title, font, width), INK, font)
    for i, words in enumerate(block.across):
        middle = left + i * (tile[0] + gap) + tile[0] / 2
        draw.text((middle, top - gap - line), _fit(words, font, tile[0]), SOFT, font, anchor="ma")
    for i, row in enumerate(block.rows):
        y = top + i * (tile[1] + gap)
        if block.down:
            draw.text((left - gap, y + tile[1] / 2), block.down[i], SOFT, font, anchor="rm")
        for j, file in enumerate(row):
            page.paste(_picture(file, tile), (left + j * (tile[0] + gap), y))
    return page


def _picture(file: Path, tile: tuple[int, int]) -> Image.Image:
    """A picture as it is, or made to fit."""
    with Image.open(file, formats=["PNG"]) as image:
        image.load()
        if image.width > tile[0] or image.height > tile[1]:
            image.thumbnail(tile, Image.Resampling.LANCZOS)
        return image.convert("RGB")


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file, formats=["PNG"]) as image:
        return image.size


def _gap(tile: tuple[int, int]) -> int:
    return max(2, tile[0] // 64)


@functools.cache
def _font(tile: tuple[int, int]) -> Font:
    return ImageFont.load_default(min(max(tile[0] // 14, 10), 28))


def _fit(text: str, font: Font, width: int) -> str:
    """`text` on one line, its end left out where it is too long."""
    text = " ".join(text.split())
    while font.getlength(text) > width and len(text) > 1:
        text = text[:-2].rstrip() + "…"
    return text
