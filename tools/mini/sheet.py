"""A sheet of prompts with fixed noise, to be looked at.

    python -m tools.mini.sheet --work DIR --mini DIR/export/mini --setting cpu64 --out sheet.png

Prompts of `evaluate` for the first half, patterns and scenes for the second; below the pictures
nothing is written, so the prompts go to stdout.
"""

import argparse
import random
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from tools.mini.compose import random_background
from tools.mini.evaluate import prompts
from tools.mini.pool import drawn_concepts
from tools.mini.sampling import GUIDANCE, sample, sheet
from tools.mini.settings import SETTINGS
from tools.mini.words import STYLES, article, background_words

COLUMNS = 8
COLOURS_KEPT = 255  # a palette keeps the file small


def texts(work: Path, setting_name: str, count: int) -> list[str]:
    setting = SETTINGS[setting_name]
    concepts = drawn_concepts(work, setting)
    plain = [words for words, _ in prompts(setting, concepts, count // 2)]
    rng = random.Random(17)
    rest: list[str] = []
    while len(plain) + len(rest) < count:
        background = random_background(rng)
        if background.kind != "plain":
            noun = f"{STYLES[rng.choice(setting.styles)][0]} {rng.choice(concepts).names[0]}"
            rest.append(f"{article(noun)} {background_words(background, rng)}")
    return plain + rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mini", type=Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="cpu64")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(options.mini, torch_dtype=torch.float32)
    asked = texts(options.work, options.setting, options.count)
    size = SETTINGS[options.setting].pixels
    pictures = sample(pipeline.to(options.device), asked, size, guidance=options.guidance)
    sheet(pictures, COLUMNS).quantize(COLOURS_KEPT).save(options.out, optimize=True)
    for row in range(0, len(asked), COLUMNS):
        print(" | ".join(asked[row : row + COLUMNS]))


if __name__ == "__main__":
    main()
