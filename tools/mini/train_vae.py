"""The autoencoder of `mini`: f8, 32 latent channels, no attention, 3 M parameters.

    python -m tools.mini.train_vae --work DIR --setting cpu64 --minutes 60 [--decoder-only]
    torchrun --nproc-per-node 2 -m tools.mini.train_vae ...                # on two cores

Fed with composites and, one picture in three, textures. `--decoder-only` leaves the encoder as it
is, so that latents and a UNet trained on them stay valid, and shows the decoder latents that are as
far off as a UNet's are. `touch DIR/PAUSE` halts it between two steps; a run continues from its last
checkpoint, WORK/vae.pt.

The posterior has one standard deviation, NOISE, for all channels and pictures, and the means cost
their square: as with the learnt one of a usual KL the code has a limited capacity, but what matters
more for the picture gets a larger scale, so that a UNet, which meets one noise for all channels,
sees it first.
"""

import argparse
import math
import random
import time
from collections import deque
from collections.abc import Callable, Generator
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

from tools.mini.masters import Masters
from tools.mini.pool import composites
from tools.mini.progress import SAVE_EVERY, Progress, load, save
from tools.mini.settings import LATENT_CHANNELS, SETTINGS, Settings
from tools.mini.team import Team
from tools.mini.textures import texture

CROP = 64  # px; the autoencoder is convolutional, so it is trained on crops of this side
CHUNK = 512  # pictures drawn at a time
SHOWN, KEPT = 4, 16  # times that a picture is shown, and chunks of which a batch is drawn
NOISE = 0.1  # standard deviation of the posterior
OFF = 0.3  # the largest deviation of latents that the decoder alone learns from
PENALTY = 0.02  # of the mean square of its means
SAID_EVERY = 100  # steps


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


@torch.no_grad()
def fix_noise(vae: AutoencoderKL) -> None:
    """Make the posterior's standard deviation NOISE, whatever the picture."""
    vae.quant_conv.weight[LATENT_CHANNELS:] = 0
    vae.quant_conv.bias[LATENT_CHANNELS:] = 2 * math.log(NOISE)


def pictures(work: Path, setting: Settings, seed: int) -> np.ndarray:
    """(CHUNK, 64, 64, 3) uint8, two composites to one texture; random crops where larger.

    Of all concepts but the held-out ones, also those that the UNet never sees: what a person brings
    is none of the words that it knows.
    """
    rng = random.Random(seed)
    drawn, _ = composites(work, replace(setting, drawn="all", unnamed=0.0), seed, CHUNK * 2 // 3)
    room = setting.pixels - CROP
    crops = []
    for picture in drawn:
        top, left = rng.randint(0, room), rng.randint(0, room)
        crops.append(picture[top : top + CROP, left : left + CROP])
    crops += [texture(CROP, rng) for _ in range(CHUNK - len(crops))]
    rng.shuffle(crops)
    return np.stack(crops)


def batches(
    draw: Callable[[int], np.ndarray], workers: int, size: int, team: Team
) -> Generator[Tensor, None, None]:
    """(size, 3, 64, 64) in [-1, 1] of the last KEPT chunks, mirrored and with colours exchanged at
    random; a new chunk for every CHUNK * SHOWN pictures.
    """
    seeds = count(1_000_000 + team.rank, team.size)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        ahead = deque(executor.submit(draw, next(seeds)) for _ in range(2 * workers))
        kept: deque[Tensor] = deque(maxlen=KEPT)
        try:
            while True:
                kept.append(torch.from_numpy(ahead.popleft().result()))
                ahead.append(executor.submit(draw, next(seeds)))
                together = torch.cat([*kept])
                for _ in range(CHUNK * SHOWN // size):
                    chosen = together[torch.randint(len(together), (size,))].permute(0, 3, 1, 2)
                    chosen = chosen[:, torch.randperm(3)]
                    yield (chosen.flip(3) if torch.rand(()) < 0.5 else chosen) / 127.5 - 1
        finally:
            executor.shutdown(cancel_futures=True)


def reconstruction_loss(out: Tensor, images: Tensor) -> Tensor:
    """L1, L1 of differences between neighbours (without it edges come out soft), and the root mean
    square of each picture, which is what its PSNR is about.
    """
    error = out - images
    edges = error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()
    return error.abs().mean() + edges + error.square().mean((1, 2, 3)).sqrt().mean()


def loss(vae: AutoencoderKL, images: Tensor, decoder_only: bool) -> Tensor:
    """images: (B, 3, 64, 64) in [-1, 1]."""
    inputs = images.to(vae.dtype).contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(not decoder_only):
        means = vae.encode(inputs).latent_dist.mean
    noise = OFF * torch.rand(len(means), 1, 1, 1).to(means) if decoder_only else NOISE
    out = vae.decode(means + noise * torch.randn_like(means)).sample
    return reconstruction_loss(out.float(), images) + PENALTY * means.float().square().mean()


@torch.inference_mode()
def measure_scale(vae: AutoencoderKL, images: Tensor) -> float:
    """1 / standard deviation of the latents, what diffusers calls the scaling factor."""
    return round(1 / vae.encode(images.to(vae.dtype)).latent_dist.sample().std().item(), 4)


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
    """Train work/vae in place, from where it is or from nothing; cosine decay over the minutes.

    batch: over all processes. workers: processes that draw, of each process.
    """
    folder, checkpoint, team = work / "vae", work / "vae.pt", Team()
    torch.manual_seed(0)  # every process of a team begins with the same weights
    fresh = not folder.exists()
    vae = build_vae() if fresh else AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    fix_noise(vae)
    vae.quant_conv.requires_grad_(False)  # its part in the means is the last convolution's as well
    vae.encoder.requires_grad_(not decoder_only)
    masters, progress = Masters(vae.train(), learning_rate, device, team), Progress()
    if checkpoint.exists():
        state = load(checkpoint, device)
        masters.load_state_dict(state["masters"])
        progress = Progress(**state["progress"])
    torch.manual_seed(1 + progress.step * team.size + team.rank)
    losses: list[Tensor] = []
    saved = time.monotonic()
    drawn = batches(partial(pictures, work, setting), workers, batch // team.size, team)
    while progress.seconds < 60 * minutes:
        with progress.counted(team, work):
            # Waiting for pictures counts: on a GPU they are what it takes time to make.
            images = next(drawn).to(device)
            value = loss(masters.working, images, decoder_only)
            value.backward()
            masters.update(learning_rate * progress.rate(minutes))
        losses.append(value.detach())
        ended = progress.seconds >= 60 * minutes
        if team.rank == 0 and progress.step % SAID_EVERY == 0:
            mean = torch.stack(losses).mean().item()
            print(
                f"{progress.step} loss {mean:.4f} minutes {progress.seconds / 60:.1f}", flush=True
            )
            losses.clear()
        if team.rank == 0 and (ended or time.monotonic() - saved > SAVE_EVERY):
            if not decoder_only:
                vae.register_to_config(scaling_factor=measure_scale(masters.working, images))
            vae.save_pretrained(folder)
            save({"masters": masters.state_dict(), "progress": vars(progress)}, checkpoint)
            saved = time.monotonic()
    drawn.close()
    if team.rank == 0:
        checkpoint.unlink()  # the folder has all that later trainings need


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
