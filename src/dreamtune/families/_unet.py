"""What the UNet families share: noise process, latents, sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from dreamtune.errors import Damaged, Unsafe
from dreamtune.formats import header

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LORA_TARGETS = {
    "attention": ATTENTION,
    "attention+mlp": [*ATTENTION, "ff.net.0.proj", "ff.net.2"],
}


def encode_image(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior of pixels (B, 3, H, W) in [-1, 1]: mean and std, (B, C, h, w) fp32, scaled."""
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
    return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale


def decode_image(vae: Any, latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) of scaled latents (B, C, h, w), in the VAE's own precision.

    diffusers' pipelines hand the denoiser's dtype to the VAE, which fails when they differ.
    """
    latents = latents.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return vae.decode(latents, return_dict=False)[0]


def spatial_factor(vae: Any) -> int:
    """Pixels to a latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def scheduler(folder: Path) -> DDIMScheduler:
    """DDIM with the noise schedule of a diffusers folder, whatever scheduler that names."""
    # Configs of other schedulers lack `clip_sample`, and DDIM's default is for pixels, not latents.
    return DDIMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample=False)


def parts(folder: Path, classes: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Frozen modules of a diffusers folder, by subfolder name; the VAE stays in fp32."""
    return {
        name: _part(folder, name, kind, torch.float32 if name == "vae" else dtype)
        for name, kind in classes.items()
    }


def _part(folder: Path, name: str, kind: Any, dtype: torch.dtype) -> Any:
    """One module, every weight of it from the files; Unsafe or Damaged otherwise."""
    variant = _check_files(folder / name)
    try:
        module, info = kind.from_pretrained(
            folder,
            subfolder=name,
            torch_dtype=dtype,
            use_safetensors=True,
            variant=variant,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as e:
        why = (str(e).strip() or repr(e)).splitlines()[0]
        raise Damaged(f"{folder / name} cannot be loaded", why=why) from None
    # The libraries only log this, and go on with random numbers.
    if missing := sorted(info["missing_keys"]):
        why = f"{len(missing)} weights are not in its files, such as {missing[0]}"
        raise Damaged(f"{folder / name} is not complete", why=why, fix="download or copy it again")
    return module.eval().requires_grad_(False)


def _check_files(folder: Path) -> str | None:
    """Look before a library opens them; "fp16" when the weights are there in no other variant."""
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        header.read_header(file)
    for index in folder.glob("*.safetensors.index.json"):
        # transformers follows any path that it finds here.
        shards = set(read_json(index).get("weight_map", {}).values())
        if bad := sorted(shards - {file.name for file in files}):
            what = f"{index} names {bad[0]!r}"
            if Path(bad[0]).name != bad[0]:
                raise Unsafe(what, why="a part of a model is a file beside its index")
            raise Damaged(what, why="there is no such file", fix="download or copy it again")
    if not files:
        others = sorted(p.name for e in ("bin", "ckpt", "pt") for p in folder.glob(f"*.{e}"))
        why = f"there is {others[0]}, a pickle, which can run code" if others else ""
        kind = Unsafe if others else Damaged
        raise kind(f"{folder} has no safetensors weights", why=why, fix=header.CONVERT)
    config = read_json(folder / "config.json")
    if hooks := sorted(k for k in config if k == "auto_map" or "attn_implementation" in k):
        raise Unsafe(f"{folder / 'config.json'} asks for foreign code", why=f"it has {hooks[0]}")
    return "fp16" if all(".fp16." in file.name for file in files) else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a base; Damaged when it is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise Damaged(f"{path} cannot be read", why=str(e)) from None
    if not isinstance(found, dict):
        raise Damaged(f"{path} is no JSON object")
    return found
