"""The autoencoder of `mini`: f8, 16 latent channels, no attention, 3 M parameters.

    python -m tools.mini.train_vae --work DIR --setting cpu64 --minutes 60 [--decoder-only]

Fed with composites and, one picture in three, textures. L1 + L1 of image gradients + a small KL.
`--decoder-only` leaves the encoder as it is, so that latents and a UNet trained on them stay valid.
`touch DIR/PAUSE` halts it between two steps.
"""

import argparse
import math
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tools.mini.pool import composites
from tools.mini.settings import LATENT_CHANNELS, SETTINGS, Settings
from tools.mini.textures import texture

CROP = 64  # px; the autoencoder is convolutional, so it is trained on crops of this side
CHUNK = 512  # pictures drawn at a time
KL = 3e-4
SAVE_EVERY = 300  # seconds


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 96, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=CROP,
    )


def pictures(work: Path, setting: Settings, seed: int) -> np.ndarray:
    """(CHUNK, 64, 64, 3) uint8, two composites to one texture; random crops where larger.

    Of all concepts but the held-out ones, also those that the UNet never sees: what a person brings
    is none of the words that it knows.
    """
    rng = random.Random(seed)
    drawn, _ = composites(work, replace(setting, drawn="all"), seed, CHUNK * 2 // 3)
    room = setting.pixels - CROP
    crops = []
    for picture in drawn:
        top, left = rng.randint(0, room), rng.randint(0, room)
        crops.append(picture[top : top + CROP, left : left + CROP])
    crops += [texture(CROP, rng) for _ in range(CHUNK - len(crops))]
    rng.shuffle(crops)
    return np.stack(crops)


def reconstruction_loss(out: Tensor, images: Tensor) -> Tensor:
    """L1, and L1 of differences between neighbours: without it edges come out soft."""
    across = (out.diff(dim=3) - images.diff(dim=3)).abs().mean()
    down = (out.diff(dim=2) - images.diff(dim=2)).abs().mean()
    return (out - images).abs().mean() + across + down


def loss(vae: AutoencoderKL, images: Tensor, decoder_only: bool) -> Tensor:
    """images: (B, 3, 64, 64) in [-1, 1]."""
    if decoder_only:
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
        return reconstruction_loss(vae.decode(latents).sample, images)
    posterior = vae.encode(images).latent_dist
    out = vae.decode(posterior.sample()).sample
    return reconstruction_loss(out, images) + KL * posterior.kl().mean() / posterior.mean[0].numel()


@torch.inference_mode()
def measure_scale(vae: AutoencoderKL, images: Tensor) -> float:
    """1 / standard deviation of the latents, what diffusers calls the scaling factor."""
    return round(1 / vae.encode(images).latent_dist.sample().std().item(), 4)


def train(
    work: Path,
    setting: Settings,
    minutes: float,
    device: str,
    batch: int,
    learning_rate: float,
    decoder_only: bool,
    workers: int,
) -> None:
    """Train work/vae in place, from where it is or from nothing; cosine decay over the minutes."""
    folder = work / "vae"
    fresh = not folder.exists()
    vae = build_vae() if fresh else AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    vae = vae.to(device, memory_format=torch.channels_last).train()
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    begun = saved = time.monotonic()
    paused, losses = 0.0, []
    draw = partial(pictures, work, setting)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        ahead = [executor.submit(draw, 1_000_000 + n) for n in range(2 * workers)]
        for number in count(2 * workers):
            chunk = torch.from_numpy(ahead.pop(0).result())
            ahead.append(executor.submit(draw, 1_000_000 + number))
            for part in chunk.split(batch):
                while (work / "PAUSE").exists():
                    time.sleep(1)
                    paused += 1
                # Waiting for pictures counts: on a GPU they are what it takes time to make.
                seconds = time.monotonic() - begun - paused
                done = min(1.0, seconds / (60 * minutes))
                optimizer.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * done)) / 2
                images = part.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
                with torch.autocast(torch.device(device).type, torch.bfloat16):
                    value = loss(vae, images, decoder_only)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                losses.append(value.detach())
            mean = torch.stack(losses).mean().item()
            print(f"{number} loss {mean:.4f} minutes {seconds / 60:.1f}", flush=True)
            losses.clear()
            if fresh:
                vae.register_to_config(scaling_factor=measure_scale(vae, images))
            if time.monotonic() - saved > SAVE_EVERY or seconds > 60 * minutes:
                vae.save_pretrained(folder)
                saved = time.monotonic()
            if seconds > 60 * minutes:
                executor.shutdown(cancel_futures=True)
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("tools/mini/work"))
    parser.add_argument("--setting", choices=SETTINGS, default="cpu64")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    options = vars(parser.parse_args())
    options["setting"] = SETTINGS[options["setting"]]
    train(**options)
