"""contact.png: the photos that are kept and those set aside, with similarity and reason."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, EDGE = 180, 18, 32  # of a tile, between tiles, around the sheet, in pixels
COLUMNS = 6
TEXT = 76  # height of the words under a tile
MOST = 60  # tiles of one kind: a sheet of ten thousand photos would show nobody anything
PAPER, INK, SOFT, FRAME = "#fbfaf7", "#1f2328", "#6b7280", "#ddd8ce"
GOOD, BAD, EMPTY = "#2f7d5b", "#b3432f", "#efebe3"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One photo. picture: the clean file, None when there is nothing to show; focus: fractions."""

    name: str
    picture: Path | None
    similarity: float | None
    code: str = ""
    detail: str = ""
    focus: tuple[float, float, float, float] | None = None


def sheet(
    title: str, kept: Sequence[Tile], aside: Sequence[Tile], line: float | None = None
) -> bytes:
    """The sheet as PNG bytes: what is kept above, what is set aside below.

    line: the similarity below which photos were set aside, marked on each photo's bar
    """
    widest = max(min(len(kept), COLUMNS), min(len(aside), COLUMNS), 3)
    width = 2 * EDGE + widest * (SIDE + GAP) - GAP
    sections = [("kept", GOOD, kept), ("set aside", BAD, aside)]
    sections = [section for section in sections if section[2]]
    height = EDGE + 56 + sum(_height(len(tiles)) for *_, tiles in sections) + EDGE // 2
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((EDGE, EDGE - 6), _fit(draw, title, _font(26), width - 2 * EDGE), INK, _font(26))
    top = EDGE + 44
    for words, colour, tiles in sections:
        _section(page, draw, top, words, colour, tiles, line)
        top += _height(len(tiles))
    buffer = io.BytesIO()
    page.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _height(count: int) -> int:
    rows = -(-min(count, MOST) // COLUMNS)
    return 46 + rows * (SIDE + TEXT + GAP)


def _section(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    top: int,
    words: str,
    colour: str,
    tiles: Sequence[Tile],
    line: float | None,
) -> None:
    more = f", the first {MOST} shown" if len(tiles) > MOST else ""
    draw.line((EDGE, top, page.width - EDGE, top), FRAME)
    draw.ellipse((EDGE, top + 17, EDGE + 12, top + 29), colour)
    draw.text((EDGE + 20, top + 12), f"{len(tiles)} {words}{more}", colour, _font(18))
    for index, tile in enumerate(tiles[:MOST]):
        x = EDGE + index % COLUMNS * (SIDE + GAP)
        y = top + 46 + index // COLUMNS * (SIDE + TEXT + GAP)
        _tile(page, draw, x, y, tile, line)


def _tile(
    page: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, tile: Tile, line: float | None
) -> None:
    draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), EMPTY)
    if tile.picture is None:
        _nothing(draw, x, y)
    else:
        _picture(page, draw, x, y, tile)
    draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline=BAD if tile.code else FRAME)
    room = SIDE
    if tile.similarity is not None:
        low = tile.code == "similarity.low"
        _bar(draw, x, y + SIDE + 5, tile.similarity, BAD if low else GOOD, line)
        words, colour = f"{tile.similarity:.2f}", BAD if low else SOFT
        draw.text((x + SIDE, y + SIDE + 11), words, colour, _font(13), anchor="ra")
        room -= 40
    name = tile.name.encode("utf-8", "replace").decode()
    draw.text((x, y + SIDE + 11), _fit(draw, name, _font(13), room), INK, _font(13))
    if tile.code:
        draw.text((x, y + SIDE + 28), _fit(draw, tile.code, _font(13), SIDE), BAD, _font(13))
        for row, words in enumerate(_wrap(draw, tile.detail, _font(12), SIDE, 2)):
            draw.text((x, y + SIDE + 45 + 15 * row), words, SOFT, _font(12))


def _picture(page: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, tile: Tile) -> None:
    """The photo, whole and centred, with corners around its subject."""
    assert tile.picture is not None
    with Image.open(tile.picture, formats=["JPEG", "PNG"]) as image:
        image.draft("RGB", (SIDE, SIDE))
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        left, top = x + (SIDE - image.width) // 2, y + (SIDE - image.height) // 2
        page.paste(image.convert("RGB"), (left, top))
        if tile.focus is not None:
            x0, y0, x1, y1 = tile.focus
            box = (
                left + round(x0 * (image.width - 1)),
                top + round(y0 * (image.height - 1)),
                left + round(x1 * (image.width - 1)),
                top + round(y1 * (image.height - 1)),
            )
            _corners(draw, box)


def _corners(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], length: int = 14) -> None:
    """Four corner marks, dark under light so that they show on any photo."""
    x0, y0, x1, y1 = box
    for colour, width in (("#00000090", 4), ("white", 2)):
        for x, y, right, down in (
            (x0, y0, 1, 1),
            (x1, y0, -1, 1),
            (x0, y1, 1, -1),
            (x1, y1, -1, -1),
        ):
            points = [(x + right * length, y), (x, y), (x, y + down * length)]
            draw.line(points, colour, width)


def _nothing(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """A file that shows no picture."""
    middle = SIDE // 2
    for a, b in (((-22, -22), (22, 22)), ((-22, 22), (22, -22))):
        ends = (x + middle + a[0], y + middle + a[1], x + middle + b[0], y + middle + b[1])
        draw.line(ends, "#c9c2b4", 5)


def _bar(
    draw: ImageDraw.ImageDraw, x: int, y: int, similarity: float, colour: str, line: float | None
) -> None:
    """Similarity as a bar of the tile's width, with a tick where the line is."""
    draw.rectangle((x, y, x + SIDE - 1, y + 2), FRAME)
    if similarity > 0:
        draw.rectangle((x, y, x + round((SIDE - 1) * min(similarity, 1.0)), y + 2), colour)
    if line is not None:
        tick = x + round((SIDE - 1) * line)
        draw.line((tick, y - 2, tick, y + 4), INK)


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int, most: int) -> list[str]:
    """`text` on at most so many lines, the last one shortened where it is too long."""
    words, lines = text.split(), [""]
    while words:
        longer = f"{lines[-1]} {words[0]}".strip()
        if lines[-1] and draw.textlength(longer, font) > width:
            if len(lines) == most:
                return [*lines[:-1], _fit(draw, " ".join([lines[-1], *words]), font, width)]
            lines.append("")
            continue
        lines[-1] = longer
        words.pop(0)
    return [_fit(draw, line, font, width) for line in lines]


def _fit(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    """`text` on one line, its middle left out where it is too long."""
    text = " ".join(text.split())
    if draw.textlength(text, font) <= width:
        return text
    keep = len(text)
    while keep > 2 and draw.textlength(_shorten(text, keep), font) > width:
        keep -= 1
    return _shorten(text, keep)


def _shorten(text: str, keep: int) -> str:
    head = (keep * 2 + 2) // 3
    tail = keep - head
    return f"{text[:head]}…{text[len(text) - tail :] if tail else ''}"


@functools.cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)
