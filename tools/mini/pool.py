"""The pool: composites encoded to latents once, shard by shard, so that a training step is the UNet
alone.

    python -m tools.mini.pool --work DIR --setting cpu64
 A shard is a .safetensors file of latents (N, 16, h, w) fp16, scaled, and a .json of the pictures
it holds. A shard is a pure function of its number; a pool can grow while the UNet trains on what is
there.
"""

import argparse
import json
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tools.mini.artwork import Concept, load_concepts, load_masters
from tools.mini.compose import compose, random_picture
from tools.mini.nouns import UNCLEAR
from tools.mini.settings import SETTINGS, Settings
from tools.mini.words import Background, Picture

SHARD = 2048


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
        and not (setting.drawn == "clear" and concept.names[0] in UNCLEAR)
    ]


def composites(
    work: Path, setting: Settings, seed: int, count: int
) -> tuple[np.ndarray, list[Picture]]:
    """(count, H, W, 3) uint8 and what they show, a pure function of the seed."""
    rng = random.Random(seed)
    codes = [concept.code for concept in drawn_concepts(work, setting)]
    masters = _masters(work, setting.pixels)
    pictures = [random_picture(setting.styles, codes, setting.pairs, rng) for _ in range(count)]
    return np.stack(
        [compose(picture, masters, setting.pixels, rng) for picture in pictures]
    ), pictures


def encode(vae: AutoencoderKL, pixels: np.ndarray, batch: int = 128) -> Tensor:
    """(N, H, W, 3) uint8 -> scaled posterior means (N, 16, H/8, W/8) fp16."""
    rows = []
    for part in torch.from_numpy(pixels).split(batch):
        images = part.to(vae.device, vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1
        mean = vae.encode(images).latent_dist.mean
        rows.append((mean * vae.config.scaling_factor).half().cpu())
    return torch.cat(rows).contiguous()


@torch.inference_mode()
def fill(work: Path, setting_name: str, vae_folder: Path, device: str, workers: int) -> None:
    """Add the shards that are missing."""
    setting, folder = SETTINGS[setting_name], work / f"pool-{setting_name}"
    folder.mkdir(parents=True, exist_ok=True)
    # bf16 with channels last encodes 3.4 times as fast as fp32 on a CPU with AMX; the error is far
    # below the KL noise.
    vae = AutoencoderKL.from_pretrained(vae_folder).to(device, torch.bfloat16)
    vae = vae.to(memory_format=torch.channels_last)
    numbers = [n for n in range(setting.pool // SHARD) if not (folder / f"{n:04d}.json").exists()]
    draw = partial(composites, work, setting, count=SHARD)
    with ProcessPoolExecutor(workers) as executor:
        for number, (pixels, pictures) in zip(numbers, executor.map(draw, numbers), strict=True):
            save_file({"latents": encode(vae, pixels)}, folder / f"{number:04d}.safetensors")
            (folder / f"{number:04d}.json").write_text(json.dumps([asdict(p) for p in pictures]))
            print(f"shard {number} of {setting.pool // SHARD}", flush=True)


class Pool:
    """Shards in memory; `refresh` takes in those written since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.latents: list[Tensor] = []
        self.pictures: list[Picture] = []
        self.refresh()

    def __len__(self) -> int:
        return len(self.pictures)

    def refresh(self) -> None:
        for path in sorted(self.folder.glob("*.json"))[len(self.latents) :]:
            self.latents.append(load_file(path.with_suffix(".safetensors"))["latents"])
            self.pictures += [_picture(row) for row in json.loads(path.read_text())]

    def take(self, indices: Tensor) -> Tensor:
        """(B,) -> (B, 16, h, w) fp32."""
        rows = [self.latents[i // SHARD][i % SHARD] for i in indices.tolist()]
        return torch.stack(rows).float()


def _picture(row: dict) -> Picture:
    return Picture(row["style"], tuple(row["codes"]), row["where"], Background(**row["background"]))


@cache
def _masters(work: Path, size: int) -> dict[str, Image.Image]:
    return load_masters(work, size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("tools/mini/work"))
    parser.add_argument("--setting", choices=SETTINGS, default="cpu64")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    fill(options.work, options.setting, options.vae, options.device, options.workers)
