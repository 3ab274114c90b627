"""The pool: composites encoded to latents once, shard by shard, so that a training step is the UNet
alone.

    python -m tools.mini.pool --work DIR --setting cpu64

A shard is a .safetensors file of latents (N, 32, h, w) fp16, scaled, and of the tokens of VARIANTS
captions for each, (N, VARIANTS, 32) int16. A shard is a pure function of its number; a pool can
grow while the UNet trains on what is there.
"""

import argparse
import random
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from tools.mini.artwork import Concept, load_concepts, load_masters
from tools.mini.compose import compose, random_picture
from tools.mini.nouns import CLEAR
from tools.mini.settings import SETTINGS, Settings
from tools.mini.words import Picture, caption

SHARD = 2048
VARIANTS = 2  # captions for each picture
CATEGORY_ONLY = 0.08


def drawn_concepts(work: Path, setting: Settings) -> list[Concept]:
    """The trained concepts of a setting: none held out, and with the 'clear' ones only those plain
    at 64 px.
    """
    masters = _masters(work, 64)
    return [
        concept
        for concept in load_concepts(work)
        if not concept.held_out
        and all(f"{style}/{concept.code}" in masters for style in setting.styles)
        and (setting.drawn == "all" or concept.names[0] in CLEAR)
    ]


def composites(
    work: Path, setting: Settings, seed: int, count: int
) -> tuple[np.ndarray, list[Picture]]:
    """(count, H, W, 3) uint8 and what they show, a pure function of the seed."""
    rng = random.Random(seed)
    named = [concept.code for concept in drawn_concepts(work, setting)]
    every = [concept.code for concept in drawn_concepts(work, replace(setting, drawn="all"))]
    unnamed = [code for code in every if code not in {*named}]
    masters, pictures = _masters(work, setting.pixels), []
    for _ in range(count):
        codes = unnamed if rng.random() < setting.unnamed else named
        pictures.append(random_picture(setting.styles, codes, setting.pairs, rng))
    return np.stack(
        [compose(picture, masters, setting.pixels, rng) for picture in pictures]
    ), pictures


def caption_ids(
    pictures: list[Picture],
    concepts: dict[str, Concept],
    named: set[str],
    tokens: CLIPTokenizer,
    seed: int,
) -> Tensor:
    """(N, VARIANTS, 32) int16. CATEGORY_ONLY of the captions name the kind of thing alone, and so
    do all of concepts that are not `named`, by code.
    """
    rng, texts = random.Random(seed), []
    for picture in pictures:
        for _ in range(VARIANTS):
            by_category = rng.random() < CATEGORY_ONLY
            things = [concepts[code] for code in picture.codes]
            nouns = [
                thing.category if by_category or thing.code not in named else noun(thing, rng)
                for thing in things
            ]
            texts.append(caption(picture, nouns, rng))
    ids = tokens(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.to(torch.int16).view(len(pictures), VARIANTS, -1)


def noun(concept: Concept, rng: random.Random) -> str:
    return concept.names[0] if rng.random() < 0.7 else rng.choice(concept.names)


def encode(vae: AutoencoderKL, pixels: np.ndarray, batch: int = 128) -> Tensor:
    """(N, H, W, 3) uint8 -> scaled posterior means (N, 32, H/8, W/8) fp16."""
    rows = []
    for part in torch.from_numpy(pixels).split(batch):
        images = part.to(vae.device, vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1
        mean = vae.encode(images).latent_dist.mean
        rows.append((mean * vae.config.scaling_factor).half().cpu())
    return torch.cat(rows).contiguous()


def draw_shard(work: Path, setting: Settings, number: int) -> tuple[np.ndarray, Tensor]:
    """Pixels (SHARD, H, W, 3) uint8 and caption tokens of one shard."""
    pixels, pictures = composites(work, setting, number, SHARD)
    concepts = {concept.code: concept for concept in load_concepts(work)}
    named = {concept.code for concept in drawn_concepts(work, setting)}
    return pixels, caption_ids(pictures, concepts, named, _tokens(work), number)


@torch.inference_mode()
def fill(work: Path, setting_name: str, device: str, workers: int) -> None:
    """Add the shards that are missing."""
    setting, folder = SETTINGS[setting_name], work / f"pool-{setting_name}"
    folder.mkdir(parents=True, exist_ok=True)
    # bf16 with channels last encodes 3.4 times as fast as fp32 on a CPU with AMX; its error is far
    # below the posterior's own noise.
    vae = AutoencoderKL.from_pretrained(work / "vae", torch_dtype=torch.bfloat16).to(device)
    vae = vae.to(memory_format=torch.channels_last)
    paths = [folder / f"{number:04d}.safetensors" for number in range(setting.pool // SHARD)]
    numbers = [number for number, path in enumerate(paths) if not path.exists()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        drawn = executor.map(partial(draw_shard, work, setting), numbers)
        try:
            for number, (pixels, ids) in zip(numbers, drawn, strict=True):
                # Whole or not at all: a training may be reading.
                unfinished = paths[number].with_suffix(".new")
                save_file({"latents": encode(vae, pixels), "ids": ids}, unfinished)
                unfinished.replace(paths[number])
                print(f"shard {number} of {len(paths)}", flush=True)
        finally:
            executor.shutdown(cancel_futures=True)


class Pool:
    """Shards in the memory of a device; `refresh` takes in those written since."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        self.seen: list[Path] = []
        self.latents = self.ids = torch.empty(0)
        self.refresh()

    def __len__(self) -> int:
        return len(self.latents)

    def refresh(self) -> None:
        new = [path for path in sorted(self.folder.glob("*.safetensors")) if path not in self.seen]
        if not new:
            return
        shards = [load_file(path, self.device) for path in new]
        had = len(self.seen) > 0
        self.latents = torch.cat([self.latents] * had + [shard["latents"] for shard in shards])
        self.ids = torch.cat([self.ids] * had + [shard["ids"] for shard in shards])
        self.seen += new


@cache
def _tokens(work: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(work / "tokenizer")


@cache
def _masters(work: Path, size: int) -> dict[str, Image.Image]:
    return load_masters(work, size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("tools/mini/work"))
    parser.add_argument("--setting", choices=SETTINGS, default="cpu64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    fill(options.work, options.setting, options.device, options.workers)
