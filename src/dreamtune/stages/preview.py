"""A picture of the concept so far. It can be missing, but it can not end a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from dreamtune import console, families, fsops

if TYPE_CHECKING:
    from dreamtune.families import Family
    from dreamtune.methods import Concept


def preview(
    family: Family, concept: Concept, folder: Path, step: int, resolution: int, seed: int
) -> None:
    """Write folder/STEP.png, or say why there is none."""
    from dreamtune.sampling import Look, pictures

    prompt = f"a photo of {concept.identifier} {concept.class_word}"
    look = Look(steps=20, guidance=5.0, size=(resolution, resolution))
    try:
        with families.recalled(family):
            picture = next(pictures(family, prompt, [seed], look, 1))
        png = io.BytesIO()
        picture.save(png, "png")
        fsops.write_bytes(fsops.make_folder(folder) / f"{step:06d}.png", png.getvalue())
    except Exception as e:  # whatever it is, hours of training are worth more
        console.warn(f"no preview at step {step}: {e or type(e).__name__}")
