"""The modules that a base is made of."""

from __future__ import annotations

from typing import Any

import torch

from dreamtune.bases import Base


def read(
    base: Base, classes: dict[str, Any], dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """Frozen modules of a base, by name of the part; the VAE stays in fp32."""
    return {
        name: base.load(name, kind, torch.float32 if name == "vae" else dtype, device)
        for name, kind in classes.items()
        if name in base.parts
    }
