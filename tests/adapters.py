"""Tiny models with the module names of the released ones, and random adapters for them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dreamtune.formats import mmdit
from dreamtune.formats.ldm import Blocks
from dreamtune.formats.lora import Adapter, LoraWeights, delta, layers, shapes

RANK = 3
LAYERS = {"sd1": 2, "sd2": 1, "sdxl": 2, "sd3": 2, "flux": 2}  # layers_per_block
LAYOUT = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux"}
TRANSFORMERS = {"sd3": mmdit.SD3, "flux": mmdit.FLUX}
FAMILIES = list(LAYERS)
ALPHAS = {"alpha = r": RANK, "alpha != r": 0.7}
BLOCKS = {
    family: Blocks((n,) * 3, (False, True, True) if family == "sdxl" else (True, True, False))
    for family, n in LAYERS.items()
}


def unet(**changes: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 12, 16),  # unequal, so that no axis is taken for another
        "norm_num_groups": 4,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**config | changes)


def clip(projection: bool = False) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=20,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def pipeline(family: str) -> Any:
    import diffusers

    torch.manual_seed(0)
    if family == "sd3":
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=3,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=24,
            caption_projection_dim=8,
            pooled_projection_dim=24,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        return diffusers.StableDiffusion3Pipeline(
            transformer,
            None,
            None,
            clip(True),
            None,
            clip(True),
            None,
            None,
            None,
        )
    if family == "flux":
        transformer = diffusers.FluxTransformer2DModel(
            in_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=12,
            guidance_embeds=True,
        )
        return diffusers.FluxPipeline(None, None, clip(), None, None, None, transformer)
    if family == "sdxl":
        model = unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            cross_attention_dim=24,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=36,
        )
        return diffusers.StableDiffusionXLPipeline(
            None, clip(), clip(True), None, None, model, None, add_watermarker=False
        )
    model = unet(use_linear_projection=family == "sd2", layers_per_block=LAYERS[family])
    return diffusers.StableDiffusionPipeline(
        None, clip(), None, model, None, None, None, requires_safety_checker=False
    )


def components(pipe: Any) -> dict[str, nn.Module]:
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return {name: getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None}


@cache
def base(family: str) -> dict[str, tuple[int, ...]]:
    parts = components(pipeline(family)).items()
    return {key: shape for name, part in parts for key, shape in shapes(name, part).items()}


def has_name(family: str, module: str) -> bool:
    """Whether the kohya layout has a name for a module of a transformer."""
    prefix, _, rest = module.partition(".")
    model = TRANSFORMERS[family]
    named = {
        b.ours: {*b.plain, *(m for parts in b.fused.values() for m in parts)} for b in model.blocks
    }
    return module in model.top or rest.partition(".")[2] in named.get(prefix, ())


@cache
def weights(family: str) -> dict[str, Tensor]:
    """The weight of every "component.module" of `pipeline(family)`."""
    parts = components(pipeline(family)).items()
    return {
        f"{name}.{path}": layer.weight.detach()
        for name, part in parts
        for path, layer in layers(name, part).items()
    }


def weight_of(family: str) -> Any:
    return lambda component, module: weights(family)[f"{component}.{module}"]


def adapter(
    family: str,
    alpha: float,
    text: bool = True,
    kind: str = "all",
    dora: bool = False,
    every: int = 1,
) -> Adapter:
    """Random weights on modules of a `kind` (linear, conv or all): all, or `every` n-th."""
    draw = torch.Generator().manual_seed(1)
    made: Adapter = {}
    for key, (out, *rest) in list(base(family).items())[::every]:
        component, _, module = key.partition(".")
        if component.startswith("text") and not text:
            continue
        if kind != "all" and kind != ("conv" if len(rest) > 1 else "linear"):
            continue
        if component == "transformer" and not has_name(family, module):
            continue
        down = torch.randn(RANK, *rest, generator=draw)
        up = torch.randn(out, RANK, *[1] * (len(rest) - 1), generator=draw)
        magnitude = None
        if dora:  # about what a few hundred steps do: the norm of the base, changed a little
            norm = weights(family)[key].flatten(1).norm(dim=1)
            magnitude = norm * (1 + 0.2 * torch.rand(out, generator=draw))
            magnitude = magnitude.reshape(out, *[1] * len(rest))
            down, up = 0.3 * down, 0.3 * up
        found = LoraWeights(down, up, float(alpha), magnitude)
        made.setdefault(component, {})[module] = found
    return made


def deltas(mine: Adapter, family: str) -> dict[str, Tensor]:
    """What an adapter adds to each "component.module"."""
    return {
        f"{component}.{module}": delta(update, weights(family)[f"{component}.{module}"])
        for component, modules in mine.items()
        for module, update in modules.items()
    }


def same(a: Any, b: Any) -> None:
    """Equal tensors; alpha to float32, which is what kohya files hold."""
    assert a.keys() == b.keys()
    for component in a:
        assert a[component].keys() == b[component].keys()
        for module, mine in a[component].items():
            other = b[component][module]
            assert math.isclose(mine.alpha, other.alpha, rel_tol=1e-6), module
            assert torch.equal(mine.down, other.down) and torch.equal(mine.up, other.up), module
            assert (mine.magnitude is None) == (other.magnitude is None), module
            assert mine.magnitude is None or torch.equal(mine.magnitude, other.magnitude), module
