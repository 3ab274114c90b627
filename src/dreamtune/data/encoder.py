"""The image encoder behind the similarity filter: pixels in, features and a map of the subject out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import NotFound
from .similarity import Calibration, Vectors

BUILTIN = "builtin"
ASSETS = Path(__file__).parents[1] / "assets" / "clip"


class Encoded(NamedTuple):
    """features: (B, D) as the calibration expects them; heat: (B, h, w), where the subject is."""

    features: Vectors
    heat: NDArray[np.float32]


class Encoder(Protocol):
    """calibration: puts this encoder's cosines on the common scale."""

    calibration: Calibration

    def __call__(self, pixels: NDArray[np.uint8]) -> Encoded:
        """uint8 (B, 224, 224, 3) -> features and heat."""
        ...


def load(name: str = BUILTIN) -> Encoder:
    """The bundled encoder, or another folder's of the same layout from DREAMTUNE_CLIP."""
    folder = Path(os.environ.get("DREAMTUNE_CLIP") or ASSETS)
    if not (folder / "image.safetensors").is_file():
        raise NotFound(
            f"no image encoder in {folder}",
            why="image.safetensors is missing",
            fix="install dreamtune again, or correct DREAMTUNE_CLIP",
        )
    return Builtin(folder)


class Builtin:
    """EfficientNet-Lite0 with ImageNet weights."""

    def __init__(self, folder: Path) -> None:
        from .tower import Tower

        self.calibration = Calibration.read(folder / "calibration.safetensors")
        self._tower = Tower.read(folder / "image.safetensors")

    def __call__(self, pixels: NDArray[np.uint8]) -> Encoded:
        import torch

        cells = self._tower(torch.from_numpy(pixels)).numpy()  # (B, 7, 7, D)
        features = cells.mean((1, 2))
        vectors = self.calibration.embed(features)
        heat = np.einsum("bhwd,bd->bhw", cells - self.calibration.mean, vectors)
        return Encoded(features, heat.astype(np.float32))
