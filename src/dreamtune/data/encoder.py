"""The image encoder behind the similarity filter: pixels to features and a map of the subject.

The built-in one runs in a second or two for a usual set; `--clip NAME:TAG` takes any open_clip
model instead, whose plain cosines then count.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import Network, NotFound, Usage, suggest
from .similarity import LINE, Calibration, Vectors

if TYPE_CHECKING:
    from torch import Tensor

BUILTIN = "builtin"
WEIGHTS, CALIBRATION = "image.safetensors", "calibration.safetensors"
ASSETS = Path(__file__).parents[1] / "assets" / "clip"
SIDE = 224
BATCH = 4  # photos at once: more falls out of the processor's cache

Pixels = NDArray[np.uint8]


class Encoded(NamedTuple):
    """features: (N, D) as the calibration expects them; heat: (N, h, w), where the subject is."""

    features: Vectors
    heat: NDArray[np.float32]


class Encoder(Protocol):
    """calibration: puts this encoder's cosines on the common scale."""

    calibration: Calibration

    def __call__(self, pixels: Pixels) -> Encoded:
        """uint8 (N, 224, 224, 3) -> features and heat."""
        ...


def load(name: str = BUILTIN) -> Encoder:
    """The bundled encoder, a folder of the same layout, or an open_clip model MODEL:TAG."""
    if name != BUILTIN and not Path(name).is_dir():
        return OpenClip(name)
    return Builtin(builtin_folder() if name == BUILTIN else Path(name))


def builtin_folder() -> Path:
    """Where the bundled encoder is; DREAMTUNE_CLIP names another folder."""
    return Path(os.environ.get("DREAMTUNE_CLIP") or ASSETS)


class Builtin:
    """EfficientNet-Lite0 with ImageNet weights."""

    def __init__(self, folder: Path) -> None:
        from .tower import Tower

        for file in (WEIGHTS, CALIBRATION):
            if not (folder / file).is_file():
                raise NotFound(
                    f"no image encoder in {folder}",
                    why=f"{file} is missing",
                    fix="install dreamtune again, or correct --clip or DREAMTUNE_CLIP",
                )
        self.calibration = Calibration.read(folder / CALIBRATION)
        self._tower = Tower.read(folder / WEIGHTS)

    def __call__(self, pixels: Pixels) -> Encoded:
        return _in_batches(self._encode, pixels)

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cells = self._tower(pixels)  # (B, 7, 7, D)
        # What activates many features strongly is a thing, not its background.
        return cells.mean((1, 2)), cells.square().sum(-1).sqrt()


class OpenClip:
    """Any model that open_clip knows, by MODEL:TAG, at its own size and colours.

    Such models are trained on cosines, so no mean is taken off and the line is theirs as it is.
    """

    def __init__(self, name: str) -> None:
        import open_clip

        model, _, tag = name.partition(":")
        known = [m for m, _ in open_clip.list_pretrained()]
        if model not in known or (model, tag) not in open_clip.list_pretrained():
            tags = [t for m, t in open_clip.list_pretrained() if m == model]
            fix = f"its tags: {', '.join(tags)}" if tags else suggest(model, known)
            raise Usage(f"unknown --clip {name!r}", fix=fix or f"{BUILTIN}, or MODEL:TAG")
        try:
            self._model = open_clip.create_model(model, pretrained=tag).eval()
        except Exception as e:  # hub, proxy and file errors of several libraries
            raise Network(
                f"cannot get {name}",
                why=str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__,
                fix=f"check the connection, or use --clip {BUILTIN}",
            ) from e
        visual: Any = self._model.visual
        self._size = visual.image_size
        self._mean, self._std = visual.image_mean, visual.image_std
        self.calibration = Calibration(np.zeros(1, np.float32), LINE)

    def __call__(self, pixels: Pixels) -> Encoded:
        return _in_batches(self._encode, pixels)

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        import torch
        import torch.nn.functional as F

        x = pixels.permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, self._size, mode="bicubic", antialias=True).clamp(0, 1)
        x = (x - torch.tensor(self._mean)[:, None, None]) / torch.tensor(self._std)[:, None, None]
        with torch.inference_mode():
            return self._model.encode_image(x), torch.zeros(len(x), 7, 7)


def _in_batches(encode: Callable[[Tensor], tuple[Tensor, Tensor]], pixels: Pixels) -> Encoded:
    """Batches side by side, one thread each: faster than all threads in one small batch.

    The last batch is filled up with black, so that a photo's features do not depend on how many
    others there are.
    """
    import torch

    count = len(pixels)
    padded = np.zeros((-(-count // BATCH) * BATCH, *pixels.shape[1:]), np.uint8)
    padded[:count] = pixels
    batches = [torch.from_numpy(padded[i : i + BATCH]) for i in range(0, len(padded), BATCH)]
    with ThreadPoolExecutor(cores(), initializer=lambda: torch.set_num_threads(1)) as pool:
        parts = list(pool.map(encode, batches))
    features, heat = (torch.cat(part)[:count].float().numpy() for part in zip(*parts, strict=True))
    return Encoded(features, heat)


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
