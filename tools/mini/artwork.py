"""Emoji artwork from npm packages to masters: one RGBA picture per concept and style, with plain-
English names.

Masters are packed as WebP files of 128 px in one .npz (about 5 KB a picture), so that they travel
to a GPU machine, and unpacked to RGBA arrays of any smaller size for work.
"""

import io
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.mini.nouns import CATEGORIES, LEFT_OUT

PACKAGES = {
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",  # Fluent Emoji, Microsoft, MIT
    "flat": "@iconify-json/twemoji@1.2.5",  # Twemoji, CC BY 4.0
    "cartoon": "@iconify-json/noto@1.2.9",  # Noto Emoji, Google, Apache-2.0
}
NAMES_PACKAGE = "emoji-datasource@16.0.0"  # code points, names, categories; MIT
SIZE = 128

DROPPED_NAMES = {
    "shit",
    "hankey",
    "mega",
    "mag",
    "tada",
    "hocho",
    "art",
    "feet",
    "flipper",
    "date",
    "birthday",
    "stars",
}


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn: `names[0]` is its plain name, the rest are synonyms."""

    code: str
    names: tuple[str, ...]
    category: str
    held_out: bool


def fetch(work: Path) -> Path:
    """Install the pinned packages with npm; returns their node_modules folder."""
    folder = work / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"name": "mini-artwork", "private": true}\n')
    packages = [*PACKAGES.values(), NAMES_PACKAGE]
    options = ["--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(["npm", "install", *options, *packages], cwd=folder, check=True)
    return folder / "node_modules"


def held_out_codes(table: Path) -> set[str]:
    """Code points, without variation selectors, of emoji that no built-in model is trained on."""
    rows = [row for row in table.read_text().splitlines() if row and not row.startswith("#")]
    return {_bare(row.split("\t")[0]) for row in rows}


def build(work: Path, held_out: Path) -> None:
    """Write work/concepts.json and work/masters.npz from the packages."""
    modules = fetch(work)
    sources = {style: _source(modules, style) for style in PACKAGES}
    concepts = []
    packed: dict[str, Any] = {}
    for concept in _concepts(modules, held_out_codes(held_out)):
        drawn = {style: draw(concept.code) for style, draw in sources.items()}
        pictures = {style: picture for style, picture in drawn.items() if picture is not None}
        if len(pictures) < 2:
            continue
        concepts.append(asdict(concept))
        for style, picture in pictures.items():
            packed[f"{style}/{concept.code}"] = np.frombuffer(_webp(picture), np.uint8)
    (work / "concepts.json").write_text(json.dumps(concepts, indent=1))
    np.savez(work / "masters.npz", **packed)


def load_concepts(work: Path) -> list[Concept]:
    rows = json.loads((work / "concepts.json").read_text())
    return [Concept(**{**row, "names": tuple(row["names"])}) for row in rows]


def load_masters(work: Path, size: int) -> dict[str, Image.Image]:
    """'style/code' -> RGBA picture of size x size."""
    with np.load(work / "masters.npz") as packed:
        pictures = {key: Image.open(io.BytesIO(packed[key].tobytes())) for key in packed.files}
        return {key: _resize(picture, size) for key, picture in pictures.items()}


def _concepts(modules: Path, held_out: set[str]) -> list[Concept]:
    plain = json.loads((modules / "@iconify-json/noto/chars.json").read_text())
    rows = json.loads((modules / "emoji-datasource/emoji.json").read_text())
    # Held-out emoji first: of two drawings with one name (horse, horse face) the first is kept.
    rows.sort(key=lambda row: _bare(row["unified"].lower()) not in held_out)
    found: dict[str, Concept] = {}
    for row in rows:
        code = _bare(row["unified"].lower())
        name = plain.get(code) or plain.get(row["unified"].lower()) or row["short_name"]
        kept = row["subcategory"] in CATEGORIES and not LEFT_OUT.search(name)
        if kept or code in held_out:
            names = _plain_names([name, *row["short_names"]])
            category = CATEGORIES.get(row["subcategory"], "object")
            found.setdefault(names[0], Concept(code, names, category, code in held_out))
    return [_without_foreign_names(concept, found) for concept in found.values()]


def _without_foreign_names(concept: Concept, found: dict[str, Concept]) -> Concept:
    """A synonym that is another concept's plain name ('memo', also called 'pencil') is dropped."""
    synonyms = [
        name for name in concept.names[1:] if name not in found and name not in DROPPED_NAMES
    ]
    return replace(concept, names=(concept.names[0], *synonyms))


def _plain_names(names: list[str]) -> tuple[str, ...]:
    """'red-apple', 'apple' -> ('red apple', 'apple'), without words for pose or number."""
    plain = []
    for name in names:
        words = re.sub(r"[-_]+", " ", name.lower())
        words = re.sub(
            r"\b(lower left|japanese|front facing|tilted left|womans|mans|\d+)\b", "", words
        )
        words = re.sub(r"(?<=[a-z])\d+\b", "", words)
        words = re.sub(r" (done|face|low volume)$", "", words.strip())
        words = " ".join(words.split())
        if words and words not in plain:
            plain.append(words)
    return tuple(plain)


def _source(modules: Path, style: str) -> Callable[[str], Image.Image | None]:
    """A function code -> RGBA picture or None."""
    folder = modules / PACKAGES[style].rpartition("@")[0]
    if (folder / "assets").is_dir():
        files = {_bare(file.stem): file for file in sorted((folder / "assets").glob("*.webp"))}
        return lambda code: _resize(Image.open(files[code]), SIZE) if code in files else None
    icons = json.loads((folder / "icons.json").read_text())
    chars = {_bare(k): v for k, v in json.loads((folder / "chars.json").read_text()).items()}
    return lambda code: _render(icons, chars[code]) if chars.get(code) in icons["icons"] else None


def _render(icons: dict, name: str) -> Image.Image:
    import resvg_py

    icon = icons["icons"][name]
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE)
    return _resize(Image.open(io.BytesIO(bytes(png))), SIZE)


def _resize(picture: Image.Image, size: int) -> Image.Image:
    # Premultiplied ('RGBa'), else the colour of invisible pixels bleeds into the edge.
    small = picture.convert("RGBA").convert("RGBa").resize((size, size), Image.Resampling.LANCZOS)
    return small.convert("RGBA")


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=90, method=4)
    return buffer.getvalue()


def _bare(code: str) -> str:
    return code.replace("-fe0f", "")
