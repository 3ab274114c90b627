"""Encodings of what is not trained: computed once, found again by what they were made from.

A photo's entry holds the VAE posteriors (mean and std, fp32) of K random crops with their sizes and
corners. Its key covers the photo's bytes, the crops, the VAE's weights and what does the
arithmetic, so that an entry can not be stale; one that fails its checksum is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreamtune import fsops
from dreamtune.data import crops
from dreamtune.data.dataset import Sample
from dreamtune.draws import seed_of
from dreamtune.errors import Damaged, NonFinite

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
Tensors = dict[str, Tensor]
VERSION = 1  # of what an entry holds


@dataclass(frozen=True)
class CropPlan:
    """How photos are cut. plain: once, the middle of the subject, without jitter."""

    sizes: tuple[tuple[int, int], ...]  # (width, height) of the buckets
    variants: int
    area: tuple[float, float]
    jitter: float
    seed: int
    plain: bool = False

    def size_for(self, sample: Sample) -> tuple[int, int]:
        """The bucket of a photo, (width, height) px."""
        return crops.nearest_bucket(sample.size, self.sizes)


@dataclass(frozen=True)
class Cache:
    """Entries by key, in a folder. Losing it costs time only.

    arithmetic: what the last bits of an entry depend on: device, libraries, threads. Without it a
    run's bytes would depend on who filled the cache before.
    """

    folder: Path
    arithmetic: Mapping[str, Any] = field(default_factory=dict)

    def get(self, facts: Any, make: Callable[[], Tensors]) -> Tensors:
        """The tensors that `make` gives, kept under the hash of `facts`; NonFinite, and nothing
        kept, when one is.
        """
        text = json.dumps([VERSION, self.arithmetic, facts], sort_keys=True)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
        with contextlib.suppress(OSError, ValueError):
            tensors = _load(path.read_bytes())
            fsops.touch(path)  # gc removes what was not used for long
            return tensors
        tensors = make()
        if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise NonFinite(
                f"the base's encoders give values that are no finite numbers ({bad[0]})",
                why="its weights are harmed, or too large for their precision",
                fix="use another --base or --vae, or try --precision fp32",
            )
        body = fsops.dump_safetensors(tensors)
        fsops.make_folder(self.folder)
        fsops.write_bytes(path, hashlib.sha256(body).digest() + body)
        return tensors


def _load(data: bytes) -> Tensors:
    """The tensors of an entry: a SHA-256 and a safetensors file. ValueError for a damaged one."""
    from safetensors.torch import load

    digest, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("checksum")
    return load(body)


def encode_photo(
    sample: Sample, plan: CropPlan, encode: Encode, vae: str, cache: Cache, device: torch.device
) -> Tensors:
    """mean, std (K, C, h, w) and meta (K, 6) of the photo's K crops.

    meta: original height and width, crop top and left in the scaled photo, target height and
    width, as SDXL is conditioned on (arXiv:2307.01952, section 2.2).
    """
    facts = {
        "photo": sample.sha256,
        "focus": sample.focus,
        "plan": {**asdict(plan), "sizes": plan.size_for(sample)},
        "vae": vae,
    }

    def make() -> Tensors:
        if fsops.hash_file(sample.path) != sample.sha256:
            raise Damaged(f"{sample.path} has changed meanwhile", fix="prepare the photos again")
        pixels, meta = cut(sample, plan)
        with torch.inference_mode():
            posteriors = [encode(p[None].to(device)) for p in pixels]
        mean, std = (torch.cat([p[i] for p in posteriors]).cpu() for i in (0, 1))
        return {"mean": mean, "std": std, "meta": meta}

    return cache.get(facts, make)


def cut(sample: Sample, plan: CropPlan) -> tuple[Tensor, Tensor]:
    """The photo's crops: pixels (K, 3, H, W) in [-1, 1] and meta (K, 6)."""
    width, height = size = plan.size_for(sample)
    with Image.open(sample.path) as file:
        photo = file.convert("RGB")
    pixels, meta = [], []
    for k in range(plan.variants):
        rng = np.random.default_rng(seed_of(plan.seed, "crop", sample.sha256, k))
        drawn = None if plan.plain else rng
        box = crops.crop_box(photo.size, sample.focus, size, drawn, plan.area)
        crop = photo.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
        array = np.asarray(crop)
        if not plan.plain:
            array = crops.jitter(array, rng, plan.jitter)
        pixels.append(torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 127.5 - 1)
        scale = width / (box[2] - box[0])
        corner = round(box[1] * scale), round(box[0] * scale)
        meta.append([photo.height, photo.width, *corner, height, width])
    return torch.stack(pixels), torch.tensor(meta, dtype=torch.float32)
