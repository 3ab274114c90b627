"""Pictures from the work folder or from an exported `mini`, with fixed starting noise, and contact
sheets of them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

GUIDANCE = 5.0  # dreamtune's own
STEPS = 25


@torch.inference_mode()
def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    size: int,
    seed: int = 0,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    batch: int = 64,
) -> Tensor:
    """(N, 3, size, size) in [-1, 1]; picture i depends on (seed, i) and its prompt alone."""
    pipeline.set_progress_bar_config(disable=True)
    if pipeline.device.type == "cpu":
        pipeline.unet.set_attn_processor(AttnProcessor())
    rows = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        noise = [
            torch.Generator().manual_seed(seed * 100_003 + start + i) for i in range(len(part))
        ]
        with torch.autocast(pipeline.device.type, torch.bfloat16):
            out = pipeline(
                part,
                height=size,
                width=size,
                num_inference_steps=steps,
                guidance_scale=guidance,
                # The last step of noise has no signal at all, so plain guidance over-exposes (Lin
                # et al. 2023, 3.4).
                guidance_rescale=0.5,
                generator=noise,
                output_type="pt",
            )
        rows.append(out.images.float().cpu() * 2 - 1)
    return torch.cat(rows)


def to_uint8(images: Tensor) -> np.ndarray:
    """(N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def sheet(images: Tensor, columns: int) -> Image.Image:
    """Pictures row by row, edge to edge."""
    pixels = to_uint8(images)
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, picture in enumerate(pixels):
        top, left = number // columns * height, number % columns * width
        canvas[top : top + height, left : left + width] = picture
    return Image.fromarray(canvas)
