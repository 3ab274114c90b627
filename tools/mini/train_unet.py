"""The UNet of `mini`: latents of the pool, states of the frozen text tower, v-prediction.

    python -m tools.mini.train_unet --work DIR --setting cpu64 --minutes 100
    torchrun --nproc-per-node 2 -m tools.mini.train_unet ...               # on two cores

The learning rate follows the minutes trained, not a number of steps, since the machine may be
shared. `touch DIR/PAUSE` halts the loop between two steps and removing it goes on; the time in
between does not count. SIGTERM saves and ends; a run continues from its last checkpoint.
"""

import argparse
import copy
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from tools.mini.masters import Masters
from tools.mini.pool import VARIANTS, Pool
from tools.mini.progress import SAVE_EVERY, Progress, load, save
from tools.mini.settings import LATENT_CHANNELS, SETTINGS, TEXT_WIDTH, Settings
from tools.mini.team import Team

EMA_DECAY = 0.999  # of a step
EMA_EVERY = 4  # steps
GAMMA = 5.0
# Of the logit of the noise level t / 1000 (Esser et al. 2024, 2403.03206, eq. 19). Style and detail
# are lost between 100 and 500, where latents this small have some 3 to 0.3 of signal to noise.
LEVEL, SPREAD = -0.6, 1.2
EMPTY = 0.1  # share of empty captions, for classifier-free guidance


def build_unet(setting: Settings) -> UNet2DConditionModel:
    crossed = setting.unet_cross_attention
    down = tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed)
    up = tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed))
    return UNet2DConditionModel(
        sample_size=setting.latents,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=setting.unet_layers,
        block_out_channels=setting.unet_channels,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=setting.heads,  # in diffusers' older blocks this is the number of heads
        use_linear_projection=True,
        # The text also scales and shifts every residual block, pooled, beside the time: cross-
        # attention alone finds the noun late.
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
        resnet_time_scale_shift="scale_shift",
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas with zero terminal SNR, v-prediction and trailing steps (Lin et al.
    2023, 2305.08891).
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # not used with trailing steps; 0 makes diffusers warn
    )


class TextStates:
    """States of the frozen text tower for captions of the pool; row -1 is the empty caption.

    On a CPU a state is computed when first asked for and kept; a GPU is faster without.
    """

    def __init__(self, work: Path, pool: Pool, device: str) -> None:
        self.pool, self.keep = pool, device == "cpu"
        tokens = CLIPTokenizer.from_pretrained(work / "tokenizer")
        self.empty = tokens("", padding="max_length", return_tensors="pt").input_ids[0].to(device)
        self.tower = CLIPTextModel.from_pretrained(work / "text_encoder", dtype=torch.bfloat16)
        self.tower = self.tower.to(device).eval()
        self.kept: dict[int, Tensor] = {}

    def take(self, rows: Tensor) -> Tensor:
        """(B,) row numbers of the flattened (N * VARIANTS) captions -> (B, 32, 256) bf16."""
        if not self.keep:
            return self.encode(rows)
        missing = [row for row in set(rows.tolist()) if row not in self.kept]
        if missing:
            states = self.encode(torch.tensor(missing))
            self.kept.update(zip(missing, states, strict=True))
        return torch.stack([self.kept[row] for row in rows.tolist()])

    @torch.no_grad()
    def encode(self, rows: Tensor) -> Tensor:
        ids = self.pool.ids.flatten(0, 1)[rows.clamp(min=0)].long()
        ids = torch.where(rows[:, None] < 0, self.empty, ids)
        return self.tower(ids).last_hidden_state


class Trainer:
    """Everything a checkpoint holds."""

    def __init__(self, setting: Settings, device: str, team: Team) -> None:
        self.setting, self.device, self.team = setting, device, team
        torch.manual_seed(0)  # every process of a team begins with the same weights
        unet = build_unet(setting)
        self.ema = copy.deepcopy(unet).to(device).eval().requires_grad_(False)
        self.masters = Masters(unet, setting.learning_rate, device, team)
        if device == "cpu":
            # bf16 scaled-dot-product attention is several times slower on a CPU than its three
            # plain products.
            self.masters.working.set_attn_processor(AttnProcessor())
        # Small kernels dominate on a GPU.
        working = self.masters.working
        self.model = torch.compile(working) if device == "cuda" else working
        self.alphas = build_scheduler().alphas_cumprod.to(device)  # (1000,), the last one is 0
        self.progress = Progress()

    def loss(self, x0: Tensor, text: Tensor) -> Tensor:
        """v-prediction with min-SNR weights, shifted by one so that the pure-noise step counts
        (Hang et al. 2023).

        x0: (B, 32, h, w) scaled latents. text: (B, 32, 256) bf16.
        """
        level = (LEVEL + SPREAD * torch.randn(len(x0), device=self.device)).sigmoid()
        t = (len(self.alphas) * level).long().clamp(max=len(self.alphas) - 1)
        a = self.alphas[t].view(-1, 1, 1, 1)
        eps = torch.randn_like(x0)
        xt = a.sqrt() * x0 + (1 - a).sqrt() * eps
        v = a.sqrt() * eps - (1 - a).sqrt() * x0
        xt = xt.bfloat16().contiguous(memory_format=torch.channels_last)
        predicted = self.model(xt, t, text).sample
        snr = (a / (1 - a)).flatten()
        weight = (snr.clamp(max=GAMMA) + 1) / (snr + 1)
        return (weight * F.mse_loss(predicted.float(), v, reduction="none").mean((1, 2, 3))).mean()

    def update(self, loss: Tensor, minutes: float) -> None:
        loss.backward()
        self.masters.update(self.setting.learning_rate * self.progress.rate(minutes))
        step = self.progress.step + 1
        if step % EMA_EVERY == 0:
            decay = min(EMA_DECAY, step / (step + 10)) ** EMA_EVERY
            averaged, current = list(self.ema.parameters()), list(self.masters.network.parameters())
            with torch.no_grad():
                torch._foreach_lerp_(averaged, current, 1 - decay)

    def state(self) -> dict[str, Any]:
        return {
            "masters": self.masters.state_dict(),
            "ema": self.ema.state_dict(),
            "progress": vars(self.progress),
        }

    def start(self, folder: Path, minutes: float) -> None:
        """From exported weights, `minutes` into a training whose other state is lost."""
        weights = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
        self.masters.network.load_state_dict(weights.state_dict())
        self.masters.share()
        self.ema.load_state_dict(weights.state_dict())
        self.progress = Progress(seconds=60 * minutes)

    def load(self, path: Path) -> None:
        state = load(path, self.device)
        self.masters.load_state_dict(state["masters"])
        self.ema.load_state_dict(state["ema"])
        self.progress = Progress(**state["progress"])


def steps(
    trainer: Trainer, pool: Pool, states: TextStates, work: Path, minutes: float
) -> Iterator[Tensor]:
    """Train until the minutes are used up; yields the loss of every step."""
    team = trainer.team
    batch = trainer.setting.batch // team.size
    torch.manual_seed(trainer.progress.step * team.size + team.rank)
    while trainer.progress.seconds < 60 * minutes:
        with trainer.progress.counted(team, work):
            chosen = torch.randint(len(pool), (batch,), device=pool.device)
            rows = chosen * VARIANTS + torch.randint(VARIANTS, (batch,), device=pool.device)
            rows[torch.rand(batch, device=pool.device) < EMPTY] = -1
            loss = trainer.loss(pool.latents[chosen].float(), states.take(rows))
            trainer.update(loss, minutes)
        yield loss.detach()


def train(
    work: Path,
    setting_name: str,
    minutes: float,
    device: str,
    stop_after: float = math.inf,
    start: Path | None = None,
    begun_at: float = 0.0,
) -> None:
    """minutes: of the whole training. stop_after: seconds of this process. start: folder of an
    exported UNet to begin with where there is no checkpoint, begun_at minutes into the training.
    """
    begun = time.monotonic()
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    checkpoint = work / f"unet-{setting_name}.pt"
    team = Team()
    trainer = Trainer(SETTINGS[setting_name], device, team)
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif start is not None:
        trainer.start(start, begun_at)
    pool = Pool(work / f"pool-{setting_name}", device)
    states = TextStates(work, pool, device)
    losses: list[Tensor] = []
    saved, reported = time.monotonic(), trainer.progress.seconds
    for loss in steps(trainer, pool, states, work, minutes):
        losses.append(loss)
        # once in a while: say how it goes
        if trainer.progress.step % 200 == 0:
            at = trainer.progress
            mean = torch.stack(losses).mean().item()
            speed = len(losses) * trainer.setting.batch / (at.seconds - reported)
            if team.rank == 0:
                done = f"samples/s {speed:.1f} minutes {at.seconds / 60:.1f}"
                print(f"{at.step} loss {mean:.4f} {done}", flush=True)
            losses.clear()
            reported = at.seconds
            pool.refresh()
        # once in a while: save
        if time.monotonic() - saved > SAVE_EVERY and team.rank == 0:
            save(trainer.state(), checkpoint)
            saved = time.monotonic()
        # All of them end after the same step.
        ending = torch.tensor(float(bool(stopped) or time.monotonic() - begun > stop_after))
        team.average([ending])
        if ending > 0:
            break
    if team.rank == 0:
        save(trainer.state(), checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("tools/mini/work"))
    parser.add_argument("--setting", choices=SETTINGS, default="cpu64")
    parser.add_argument("--minutes", type=float, default=240)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds")
    parser.add_argument("--weights", type=Path, help="an exported UNet to go on from")
    parser.add_argument("--begun-at", type=float, default=0.0, help="minutes that it was trained")
    options = parser.parse_args()
    train(
        options.work,
        options.setting,
        options.minutes,
        options.device,
        options.stop_after,
        options.weights,
        options.begun_at,
    )
