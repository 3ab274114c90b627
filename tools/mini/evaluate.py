"""The bars of README.md, with fixed seeds.

    python -m tools.mini.evaluate --work DIR --mini DIR/export/mini [--photos PHOTOS]
    python -m tools.mini.evaluate --work DIR --mini DIR/export/mini --speed

Pictures are judged by EfficientNet-Lite0 penultimate features, which the generator never trained
on: a picture shows what the nearest true emoji shows, by cosine of centred features. It is asked
twice, among the concepts that have names and among every emoji that there is, the held-out ones
too. Beside each figure stands what the judge makes of real composites, its ceiling.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from tools.mini import judge
from tools.mini.artwork import Concept, load_concepts, load_masters
from tools.mini.compose import compose, random_background
from tools.mini.pool import drawn_concepts
from tools.mini.sampling import GUIDANCE, sample, to_uint8
from tools.mini.settings import LATENT_CHANNELS, SETTINGS, Settings
from tools.mini.train_vae import pictures
from tools.mini.words import COLOURS, STYLES, Background, Picture, article

VIEWS = 4  # real composites behind each reference
SEEN_AT = 128  # px, what the judge is shown


@dataclass(frozen=True)
class Share:
    """A proportion with its 95 % Wilson interval."""

    hits: int
    count: int

    def __str__(self) -> str:
        z, p, n = 1.96, self.hits / self.count, self.count
        middle, root = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = ((middle + sign * root) / (1 + z * z / n) for sign in (-1, 1))
        return f"{100 * p:.0f} % ({100 * max(low, 0):.0f}-{100 * high:.0f}, n={n})"


def share(hits: Tensor) -> Share:
    return Share(int(hits.sum()), hits.numel())


class References:
    """Centred mean features of every (style, concept), from `views` real composites on random
    backgrounds.
    """

    def __init__(
        self, work: Path, setting: Settings, concepts: list[Concept], views: int = VIEWS
    ) -> None:
        self.network = judge.load(work / "effnet_lite0.safetensors").to(
            memory_format=torch.channels_last
        )
        self.keys = [(style, c.code) for style in setting.styles for c in concepts]
        self.styles = torch.tensor([list(STYLES).index(style) for style, _ in self.keys])
        self.number = {code: i for i, code in enumerate(c.code for c in concepts)}
        self.codes = torch.tensor([self.number[code] for _, code in self.keys])
        path = work / f"references-{setting.pixels}-{len(self.keys)}-{views}.safetensors"
        if not path.exists():
            save_file({"features": self._views(work, setting, views)}, path)
        seen = load_file(path)["features"].view(views + 1, len(self.keys), -1)
        self.mean = seen.mean((0, 1))
        self.bank = F.normalize((seen[:views] - self.mean).mean(0), dim=-1)  # (K, 1280)
        self.unseen = seen[views]  # one more real view of each, to measure the judge itself

    def _views(self, work: Path, setting: Settings, views: int) -> Tensor:
        rows = []
        for images in self.composites(work, setting, views + 1, seed=11):
            rows.append(judge.features(self.network, images, size=SEEN_AT))
            print(f"references {256 * len(rows)} of {len(self.keys) * (views + 1)}", flush=True)
        return torch.cat(rows)

    def composites(
        self, work: Path, setting: Settings, views: int, seed: int, batch: int = 256
    ) -> Iterator[Tensor]:
        """Every (style, concept) on random backgrounds, `views` times: (B, 3, H, W) in [-1, 1]."""
        rng, masters = random.Random(seed), load_masters(work, setting.pixels)
        pictures = [
            Picture(style, (code,), "", random_background(rng))
            for _ in range(views)
            for style, code in self.keys
        ]
        for start in range(0, len(pictures), batch):
            part = pictures[start : start + batch]
            drawn = np.stack([compose(picture, masters, setting.pixels, rng) for picture in part])
            yield torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1

    def rank(self, features: Tensor) -> Tensor:
        """(N, 1280) -> (N, K) numbers of references, nearest first."""
        near = F.normalize(features - self.mean, dim=-1) @ self.bank.T
        return near.argsort(dim=1, descending=True)

    def concepts(self, features: Tensor) -> Tensor:
        """(N, 1280) -> (N, concepts) concept numbers, nearest first, each by its best style."""
        near = F.normalize(features - self.mean, dim=-1) @ self.bank.T  # (N, K), styles outermost
        best = near.view(len(near), -1, len(self.number)).amax(1)
        return best.argsort(dim=1, descending=True)

    def score(self, features: Tensor, codes: Tensor, styles: Tensor) -> dict[str, str]:
        """codes, styles: (N,) what was asked for, as `number` and STYLES count them."""
        ranked = self.concepts(features)
        right = self.styles[self.rank(features)[:, 0]] == styles
        scores = {
            "concept top-1": share(ranked[:, 0] == codes),
            "concept top-5": share((ranked[:, :5] == codes[:, None]).any(1)),
            "style": share(right),
        }
        for number in styles.unique().tolist():
            scores[f"style {[*STYLES][number]}"] = share(right[styles == number])
        return {name: str(value) for name, value in scores.items()}

    def numbers(self, asked: Sequence[Picture]) -> Tensor:
        """(N,) of the concepts that pictures of one thing show."""
        return torch.tensor([self.number[picture.codes[0]] for picture in asked])


def lab(colours: np.ndarray) -> np.ndarray:
    """(..., 3) sRGB in [0, 1] -> CIE Lab under D65 (IEC 61966-2-1 and CIE 15)."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def background_colour(pixels: np.ndarray) -> list[str]:
    """(N, H, W, 3) uint8 -> the named colour nearest to the median of each border (CIE76)."""
    names = list(COLOURS)
    palette = lab(np.array([COLOURS[name] for name in names]) / 255)  # (12, 3)
    found = []
    for picture in pixels:
        edge = max(1, len(picture) // 20)
        border = np.concatenate(
            [
                picture[:edge].reshape(-1, 3),
                picture[-edge:].reshape(-1, 3),
                picture[:, :edge].reshape(-1, 3),
                picture[:, -edge:].reshape(-1, 3),
            ]
        )
        colour = lab(np.median(border, axis=0) / 255)
        found.append(names[int(np.linalg.norm(palette - colour, axis=1).argmin())])
    return found


def prompts(setting: Settings, concepts: list[Concept], count: int) -> list[tuple[str, Picture]]:
    """'a STYLE NOUN on a COLOUR background', drawn with a fixed seed."""
    rng, asked = random.Random(5), []
    for _ in range(count):
        style, concept = rng.choice(setting.styles), rng.choice(concepts)
        colour = rng.choice(list(COLOURS))
        words = f"a {STYLES[style][0]} {concept.names[0]} on {article(colour)} background"
        asked.append((words, Picture(style, (concept.code,), "", Background("plain", colour))))
    return asked


def every_concept(work: Path, setting: Settings) -> list[Concept]:
    """All emoji that there are in every style, those without a name of their own and those held out
    too.
    """
    masters = load_masters(work, 32)
    return [
        concept
        for concept in load_concepts(work)
        if all(f"{style}/{concept.code}" in masters for style in setting.styles)
    ]


def score_prompts(
    banks: dict[str, References],
    pipeline: StableDiffusionPipeline,
    setting: Settings,
    concepts: list[Concept],
    count: int,
    guidance: float,
) -> dict[str, str]:
    """banks: the references to be found among, by what they are called."""
    words, asked = zip(*prompts(setting, concepts, count), strict=True)
    images = sample(pipeline, words, setting.pixels, guidance=guidance)
    styles = torch.tensor([list(STYLES).index(picture.style) for picture in asked])
    scores: dict[str, str] = {}
    for name, references in banks.items():
        features = judge.features(references.network, images, size=SEEN_AT)
        found = references.score(features, references.numbers(asked), styles)
        scores |= {f"{name}: {key}": value for key, value in found.items()}
    wanted = [picture.background.colour for picture in asked]
    hits = [a == b for a, b in zip(background_colour(to_uint8(images)), wanted, strict=True)]
    return {**scores, "background colour": str(share(torch.tensor(hits)))}


def seconds_for_four(pipeline: StableDiffusionPipeline, setting: Settings) -> float:
    """4 pictures, 25 steps with guidance, two threads, after a warm-up; nothing else may run."""
    torch.set_num_threads(2)
    asked = ["a 3d cat on a red background"] * 4
    sample(pipeline, asked, setting.pixels, steps=2)
    started = time.monotonic()
    sample(pipeline, asked, setting.pixels)
    return time.monotonic() - started


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, images: Tensor, batch: int = 32) -> Tensor:
    """(N, 3, H, W) in [-1, 1] through the autoencoder, from the posterior mean."""
    rows = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in images.split(batch)]
    return torch.cat(rows).clamp(-1, 1)


def psnr(out: Tensor, images: Tensor) -> Tensor:
    """(N,) dB of (N, 3, H, W) in [-1, 1]."""
    return -10 * ((out - images) / 2).square().mean((1, 2, 3)).log10()


def score_reconstructed(
    references: References, vae: AutoencoderKL, work: Path, setting: Settings
) -> dict[str, str]:
    """What the judge makes of real composites that only went through the autoencoder."""
    images = torch.cat([*references.composites(work, setting, 1, seed=12)])
    features = judge.features(references.network, reconstruct(vae, images), size=SEEN_AT)
    scores = references.score(features, references.codes, references.styles)
    return {f"after the autoencoder: {name}": value for name, value in scores.items()}


def unseen_emoji(work: Path, size: int) -> Tensor:
    """The sixty held-out emoji in every style on plain backgrounds: (180, 3, size, size) in [-1,
    1].
    """
    rng, masters = random.Random(13), load_masters(work, size)
    codes = [concept.code for concept in load_concepts(work) if concept.held_out]
    rows = []
    for style in STYLES:
        for code in codes:
            if f"{style}/{code}" in masters:
                background = Background("plain", rng.choice(list(COLOURS)))
                rows.append(compose(Picture(style, (code,), "", background), masters, size, rng))
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2) / 127.5 - 1


def photographs(folder: Path, size: int) -> Tensor:
    """Centre crops of every photo below `folder`: (N, 3, size, size) in [-1, 1]."""
    rows = []
    for path in sorted(folder.rglob("*.jpg")):
        photo = Image.open(path).convert("RGB")
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        photo = photo.resize(
            (size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side)
        )
        rows.append(torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(rows)


class Linear:
    """The best linear code of as many numbers for each 8x8 block (principal components), fitted to
    pictures like those that the autoencoder learned from: what it has to beat.
    """

    def __init__(self, work: Path, setting: Settings) -> None:
        drawn = np.concatenate([pictures(work, setting, seed) for seed in range(4)])
        blocks = self._blocks(torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1)
        self.mean = blocks.mean(0)
        self.basis = torch.linalg.eigh((blocks - self.mean).T.cov()).eigenvectors  # rising
        self.basis = self.basis[:, -LATENT_CHANNELS:]  # (192, 32)

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1], coded and decoded."""
        count, _, height, width = images.shape
        blocks = (self._blocks(images) - self.mean) @ self.basis @ self.basis.T + self.mean
        rows = blocks.view(count, height // 8, width // 8, -1).permute(0, 3, 1, 2)
        return F.pixel_shuffle(rows, 8).clamp(-1, 1)

    @staticmethod
    def _blocks(images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N * H/8 * W/8, 192)."""
        return F.pixel_unshuffle(images, 8).permute(0, 2, 3, 1).flatten(0, 2)


def score_vae(
    vae: AutoencoderKL, work: Path, setting: Settings, photos: Path | None
) -> dict[str, str]:
    sets = {"unseen emoji": unseen_emoji(work, setting.pixels)}
    if photos is not None:
        sets["photos"] = photographs(photos, setting.pixels)
    scores, linear = {}, Linear(work, setting)
    for name, images in sets.items():
        values = psnr(reconstruct(vae, images), images)
        error = 1.96 * values.std() / math.sqrt(len(values))
        scores[f"PSNR {name}"] = f"{values.mean():.1f} dB (±{error:.1f}, n={len(values)})"
        scores[f"PSNR {name}, linear"] = f"{psnr(linear(images), images).mean():.1f} dB"
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("tools/mini/work"))
    parser.add_argument("--setting", choices=SETTINGS, default="cpu64")
    parser.add_argument("--mini", type=Path, required=True)
    parser.add_argument(
        "--photos", type=Path, help="folder of photographs for the autoencoder's second figure"
    )
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--speed", action="store_true", help="time 4 pictures, on an idle machine")
    options = parser.parse_args()
    setting = SETTINGS[options.setting]
    pipeline = StableDiffusionPipeline.from_pretrained(options.mini, torch_dtype=torch.float32)
    if options.speed:
        print(f"4 images, 25 steps, 2 threads: {seconds_for_four(pipeline, setting):.1f} s")
        return
    scores = score_vae(pipeline.vae, options.work, setting, options.photos)
    concepts = drawn_concepts(options.work, setting)
    banks = {
        "named": References(options.work, setting, concepts),
        "all emoji": References(options.work, setting, every_concept(options.work, setting)),
    }
    for name, bank in banks.items():
        ceiling = bank.score(bank.unseen, bank.codes, bank.styles)
        scores |= {f"judge's ceiling, {name}: {key}": value for key, value in ceiling.items()}
    scores |= score_reconstructed(banks["named"], pipeline.vae, options.work, setting)
    scores |= score_prompts(banks, pipeline, setting, concepts, options.count, options.guidance)
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
