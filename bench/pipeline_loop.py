"""Pictures with diffusers as its documentation shows it: prompt by prompt, then saved.

    python -m bench.pipeline_loop BASE PROMPTS OUT [--each 1] [--together] [--steps 25]

Prints the seconds of the loop, pictures saved.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.pipeline_loop")
    parser.add_argument("base")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--together", action="store_true", help="num_images_per_prompt")
    parser.add_argument("--steps", type=int, default=25)
    ask = parser.parse_args()
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(ask.base, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    start = time.perf_counter()
    for i, prompt in enumerate(ask.prompts.read_text().splitlines()):
        count = ask.each if ask.together else 1
        for first in range(0, ask.each, count):
            images = pipeline(
                prompt,
                num_images_per_prompt=count,
                num_inference_steps=ask.steps,
                guidance_scale=5.0,
                generator=[torch.Generator().manual_seed(first + n) for n in range(count)],
            ).images
            for n, image in enumerate(images):
                image.save(ask.out / f"{i:03d}-{first + n}.png")
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
