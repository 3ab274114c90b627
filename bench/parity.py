"""The maths of one update: ours against diffusers' training scripts, on the same tiny bases.

    python -m bench.parity --scripts FOLDER        (diffusers/examples, or its dreambooth folder)

Each script runs as it is, on a tiny base of random weights in the diffusers layout and two
pictures, up to its first backward pass. What it drew, encoded, predicted and lost is recorded; the
same draws go through our `Family` and `Objective`. The largest relative difference of each value is
printed; more than 1e-5 ends with exit code 1.

Where the scripts are known to be wrong (commit 58eb52c080, 2026-08), they are run around it:

    sd3    T5 reads 77 tokens by default, though the pipeline gives it 256 when the adapter is used:
           run with --max_sequence_length=256
    sd3    --precondition_outputs, on by default, compares estimates of the clean latents: the loss
           of the paper times sigma squared, which all but ignores the low times that its
           logit-normal draws; run with 0
    flux   the shift by resolution in the scheduler's config is not applied in training, so that
           times are lower than those the base is sampled at; compared at the times that it drew
    flux   --cache_latents with captions of their own: the latents are cached in one shuffled order
           and read in another, so that pictures get each other's captions; not used here
    sdxl   with prior preservation, class images get the sizes and crops of the photos (time ids);
           not used here
    all    the mean of the times' logits counts backwards: --logit_mean 1 prefers clean pictures,
           where SD 3's paper (section 3.1) prefers noise; ours is the paper's
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreamtune import devices, families, losses
from dreamtune.diffusion import Ddpm, Ramp, Times
from dreamtune.objective import Objective

PROMPT = "a photo of sks dog"
SIZE = 64
MOST = 1e-5


@dataclass(frozen=True)
class Case:
    """A base and the script that trains it. `change` is made to the tiny family before saving."""

    script: str
    family: str
    change: Callable[[Any], Any] = lambda family: family
    flags: tuple[str, ...] = ()


def _predicts_v(family: Any) -> Any:
    family.scheduler.register_to_config(prediction_type="v_prediction")
    return family


def _schnell(family: Any) -> Any:
    return type(family).tiny(guided=False)


SD3_FLAGS = ("--max_sequence_length=256", "--precondition_outputs=0")
CASES = {
    "sd, epsilon": Case("train_dreambooth_lora.py", "sd"),
    "sd, v": Case("train_dreambooth_lora.py", "sd", _predicts_v),
    "sdxl, epsilon": Case("train_dreambooth_lora_sdxl.py", "sdxl"),
    "sdxl, v": Case("train_dreambooth_lora_sdxl.py", "sdxl", _predicts_v),
    "sd3": Case("train_dreambooth_lora_sd3.py", "sd3", flags=SD3_FLAGS),
    "flux dev": Case("train_dreambooth_lora_flux.py", "flux", flags=("--guidance_scale=1",)),
    "flux schnell": Case(
        "train_dreambooth_lora_flux.py", "flux", _schnell, ("--max_sequence_length=256",)
    ),
}


COLUMNS = ("latents", "text", "noisy", "prediction", "target", "loss")


def main() -> None:
    ask = _arguments()
    devices.quiet_libraries()
    logging.disable(logging.ERROR)  # the scripts turn everything on
    worst = 0.0
    print(f"{'relative difference':20}" + "".join(f"{name:>12}" for name in COLUMNS))
    for name, case in CASES.items():
        path = next((p for p in ask.scripts.rglob(case.script)), None)
        if path is None:
            raise SystemExit(f"{ask.scripts} has no {case.script}")
        with tempfile.TemporaryDirectory(prefix="dreamtune-parity-") as work:
            found = compare(case, path, Path(work))
        worst = max(worst, *found.values())
        print(f"{name:20}" + "".join(f"{found[column]:12.1e}" for column in COLUMNS), flush=True)
    raise SystemExit(worst > MOST)


def compare(case: Case, script: Path, work: Path) -> dict[str, float]:
    """The relative difference of each of COLUMNS."""
    family = case.change(families.load(f"tiny:{case.family}", torch.float32))
    family.pipeline().save_pretrained(work / "base")
    _photos(work / "photos")
    seen, posterior_noise = run(script, work, case.flags)
    mine = ours(families.load(str(work / "base"), torch.float32), seen, posterior_noise)
    theirs = {
        "latents": seen["model_input"],
        "noisy": seen["noisy_model_input"],
        "prediction": seen["model_pred"],
        "target": seen["target"],
        "loss": seen["loss"],
        **_text(seen),
    }
    found = {name: _difference(mine[name], theirs[name]) for name in theirs}
    return {**found, "text": max(found["text"], found.get("pooled", 0.0))}


def run(script: Path, work: Path, flags: tuple[str, ...]) -> tuple[dict[str, Any], Tensor]:
    """The local variables of a script's `main` where it goes backwards, and its posterior noise."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = module.parse_args(
        [
            f"--pretrained_model_name_or_path={work / 'base'}",
            f"--instance_data_dir={work / 'photos'}",
            f"--instance_prompt={PROMPT}",
            f"--output_dir={work / 'out'}",
            f"--resolution={SIZE}",
            "--train_batch_size=2",
            "--max_train_steps=1",
            "--mixed_precision=no",
            "--seed=0",
            *flags,
        ]
    )
    vars(module)["args"] = args  # its dataset reads a global
    seen: dict[str, Any] = {}
    draws: list[Tensor] = []
    with contextlib.suppress(Enough), watched(seen, draws):
        module.main(args)
    return seen, draws[-1]


class Enough(Exception):
    """The script has done what is compared."""


@contextlib.contextmanager
def watched(seen: dict[str, Any], draws: list[Tensor]) -> Iterator[None]:
    """Note the autoencoder's draws, and all that the script knows when it goes backwards."""
    import accelerate
    from diffusers.models.autoencoders import vae

    draw = vae.randn_tensor

    def drawn(*args: Any, **kwargs: Any) -> Tensor:
        draws.append(draw(*args, **kwargs))
        return draws[-1]

    def backward(accelerator: Any, loss: Tensor) -> None:
        seen.update(sys._getframe(1).f_locals)
        raise Enough

    with (
        patch.object(vae, "randn_tensor", drawn),
        patch.object(accelerate.Accelerator, "backward", backward),
    ):
        yield


def ours(family: families.Family, seen: dict[str, Any], drawn: Tensor) -> dict[str, Tensor]:
    """What our code makes of the same pixels, prompt, draws and times."""
    tokens = {stack.name: stack.tokenize([PROMPT]) for stack in family.text}
    noise = seen["noise"]
    size = (noise.shape[-2], noise.shape[-1])
    family.process = family.process.tuned(Times("uniform"), None)
    u = _levels(family.process, seen["timesteps"], size)
    t = family.process.timesteps(u, size)
    with torch.no_grad():
        mean, std = family.encode_image(seen["pixel_values"])
        once = family.encode_text(tokens)
        text = {name: state.expand(2, *state.shape[1:]) for name, state in once.items()}
        meta = _time_ids(seen)
        batch = {"mean": mean, "std": std, "posterior_noise": drawn, "noise": noise}
        loss = Objective(family, {"denoiser"}, losses.l2)(
            {**batch, "u": u, "text": text, "meta": meta}
        )
        x0 = mean + std * drawn
        noisy = family.process.add_noise(x0, noise, t)
        prediction = family.predict(noisy, t, family.condition(text, meta))
    target = family.process.target(x0, noise, t)
    made = {"latents": x0, "noisy": noisy, "prediction": prediction, "target": target}
    return {**made, **once, "loss": loss.mean()}


def _levels(process: Any, t: Tensor, size: tuple[int, int]) -> Tensor:
    """The uniform numbers that a process with uniform times turns into `t`."""
    if isinstance(process, Ddpm):
        return (t + 0.5) / len(process.alphas_cumprod)
    shift = process.shift.shift(size) if isinstance(process.shift, Ramp) else process.shift
    sigma = t.double() / 1000
    return sigma / (shift - (shift - 1) * sigma)


def _text(seen: dict[str, Any]) -> dict[str, Tensor]:
    """The text conditions of one prompt, by our names; the scripts have several."""
    added = seen.get("unet_added_conditions", {})
    pooled = added.get("text_embeds", seen.get("pooled_prompt_embeds"))
    states = seen.get("prompt_embeds", seen.get("encoder_hidden_states"))
    found = {"text": states, "pooled": pooled}
    return {name: state[:1] for name, state in found.items() if state is not None}


def _time_ids(seen: dict[str, Any]) -> Tensor:
    """SDXL's time ids from what the dataset says of the pictures."""
    if "original_sizes" not in seen["batch"]:
        return torch.zeros(2, 6)
    batch = seen["batch"]
    pairs = zip(batch["original_sizes"], batch["crop_top_lefts"], strict=True)
    return torch.tensor([[*size, *corner, SIZE, SIZE] for size, corner in pairs]).float()


def _difference(mine: Tensor, theirs: Tensor) -> float:
    return ((mine - theirs).norm() / theirs.norm()).item()


def _photos(folder: Path) -> None:
    """Two pictures of noise in other sizes and shapes than are trained at."""
    folder.mkdir()
    source = np.random.default_rng(0)
    for i, (height, width) in enumerate([(80, 100), (120, 90)]):
        pixels = source.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.parity", description=__doc__.partition("\n")[0])
    parser.add_argument("--scripts", type=Path, required=True, help="diffusers' examples folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
