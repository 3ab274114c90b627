"""LoRA layouts on tiny real models: there and back, and as other programs read the files."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamtune.errors import Damaged, Usage, UserError
from dreamtune.formats import diffusers as diffusers_layout
from dreamtune.formats import kohya
from dreamtune.formats.header import read_header
from dreamtune.formats.lora import (
    Adapter,
    LoraWeights,
    collect,
    delta,
    misfits,
    shapes,
    signature,
)
from dreamtune.fsops import write_safetensors

RANK = 3
LAYERS = {"sd1": 2, "sd2": 1, "sdxl": 2, "sd3": 2, "flux": 2}  # layers_per_block
LAYOUT = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux"}
BLOCKS = {"sd3": kohya.SD3, "flux": kohya.FLUX}
FAMILIES = list(LAYERS)
ALPHAS = {"alpha = r": RANK, "alpha != r": 0.7}


# ---- tiny models


def unet(**changes: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 8, 8),
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
    named = {
        b.ours: {*b.plain, *(m for parts in b.fused.values() for m in parts)}
        for b in BLOCKS[family]
    }
    return rest.partition(".")[2] in named.get(prefix, ())


def adapter(family: str, alpha: float, text: bool = True) -> Adapter:
    """Random weights on every linear and convolution that the layouts have a name for."""
    draw = torch.Generator().manual_seed(1)
    made: Adapter = {}
    for key, (out, *rest) in base(family).items():
        component, _, module = key.partition(".")
        if component.startswith("text") and not text:
            continue
        if component == "transformer" and not has_name(family, module):
            continue
        down = torch.randn(RANK, *rest, generator=draw)
        up = torch.randn(out, RANK, *[1] * (len(rest) - 1), generator=draw)
        made.setdefault(component, {})[module] = LoraWeights(down, up, float(alpha))
    return made


def same(a: Adapter, b: Adapter, tolerance: float = 0.0) -> None:
    """Equal tensors; alpha to float32, which is what kohya files hold."""
    assert a.keys() == b.keys()
    for component in a:
        assert a[component].keys() == b[component].keys()
        for module, mine in a[component].items():
            other = b[component][module]
            assert math.isclose(mine.alpha, other.alpha, rel_tol=1e-6), module
            assert torch.equal(mine.down, other.down) and torch.equal(mine.up, other.up), module


# ---- there and back


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trips(family: str, alpha: float, tmp_path: Path) -> None:
    mine = adapter(family, alpha)
    tensors = kohya.dump(mine, LAYOUT[family], LAYERS[family])
    write_safetensors(tmp_path / "k.safetensors", tensors)
    same(mine, kohya.parse(load_file(tmp_path / "k.safetensors"), LAYERS[family]))
    assert all(t.dtype == torch.float32 for key, t in tensors.items() if key.endswith(".alpha"))
    assert len(tensors) % 3 == 0, "down, up and alpha for each module"

    tensors, metadata = diffusers_layout.dump(mine)
    write_safetensors(tmp_path / "d.safetensors", tensors, metadata)
    header = read_header(tmp_path / "d.safetensors")
    same(mine, diffusers_layout.parse(load_file(tmp_path / "d.safetensors"), header.metadata))


@pytest.mark.parametrize("family", FAMILIES)
def test_covers_linear_and_convolution(family: str) -> None:
    dimensions = {w.down.dim() for w in adapter(family, 1)[next(iter(adapter(family, 1)))].values()}
    assert dimensions == ({2} if family in BLOCKS else {2, 4})


@pytest.mark.parametrize("family", FAMILIES)
def test_released_sizes_have_unambiguous_names(family: str) -> None:
    """Every linear and convolution of the released models, by name (meta device: no memory)."""
    import diffusers

    with torch.device("meta"):
        if family == "sd3":
            model = diffusers.SD3Transformer2DModel(num_layers=24, dual_attention_layers=(0, 1, 12))
        elif family == "flux":
            model = diffusers.FluxTransformer2DModel(guidance_embeds=True)
        elif family == "sdxl":
            model = diffusers.UNet2DConditionModel(
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            )
        else:
            model = diffusers.UNet2DConditionModel(use_linear_projection=family == "sd2")
    modules = [key.removeprefix("x.") for key in shapes("x", model)]
    if family in BLOCKS:
        modules = [module for module in modules if has_name(family, module)]
    form = kohya.LAYOUTS[LAYOUT[family]]
    one, wide = (LoraWeights(torch.ones(3, 2), torch.ones(n, 3), 3.0) for n in (3, 12))
    mine: Adapter = {form.denoiser: {m: wide if "proj_mlp" in m else one for m in modules}}
    assert kohya.parse(kohya.dump(mine, LAYOUT[family]))[form.denoiser].keys() == set(modules)


def test_sdxl_writes_sgm_blocks_and_reads_both() -> None:
    mine = adapter("sdxl", 2.0)
    names = {key.partition(".")[0] for key in kohya.dump(mine, "sdxl")}
    # Two that SwarmUI knows SDXL by (SDXL proper has them at these places too).
    assert "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2" in names
    assert "lora_te1_text_model_encoder_layers_0_self_attn_v_proj" in names
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in names
    assert "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k" in names
    assert not any("down_blocks" in name or "lora_te_" in name for name in names)
    by_diffusers = kohya.dump({"unet": mine["unet"]}, "sd")
    same({"unet": mine["unet"]}, kohya.parse(by_diffusers))


def test_missing_alpha_means_scale_one() -> None:
    tensors = kohya.dump(adapter("sd1", 0.7), "sd")
    bare = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    assert {w.alpha for m in kohya.parse(bare).values() for w in m.values()} == {RANK}
    tensors, _ = diffusers_layout.dump(adapter("sd1", 0.7))
    parsed = diffusers_layout.parse(tensors, {})
    assert {w.alpha for m in parsed.values() for w in m.values()} == {RANK}


def test_other_ranks_and_alphas_by_module() -> None:
    mine = adapter("sd1", 4.0)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    mine["unet"][name] = LoraWeights(torch.randn(5, 8), torch.randn(8, 5), 1.25)
    mine["text_encoder"]["text_model.encoder.layers.1.mlp.fc1"] = LoraWeights(
        torch.randn(1, 12), torch.randn(16, 1), 8.0
    )
    same(mine, kohya.parse(kohya.dump(mine, "sd")))
    same(mine, diffusers_layout.parse(*diffusers_layout.dump(mine)))


def test_delta_is_the_formula() -> None:
    weights = LoraWeights(torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1), 0.5)
    want = torch.einsum("orxy,rihw->oihw", weights.up, weights.down) * 0.25
    assert torch.allclose(delta(weights), want, atol=1e-6)


# ---- sd3: q, k and v in one matrix


def test_sd3_fused_delta_is_the_three_deltas() -> None:
    mine = adapter("sd3", 0.7)["transformer"]
    tensors = kohya.dump({"transformer": mine}, "sd3")
    name = "lora_unet_joint_blocks_0_context_block_attn_qkv"
    fused = LoraWeights(
        tensors[f"{name}.lora_down.weight"],
        tensors[f"{name}.lora_up.weight"],
        float(tensors[f"{name}.alpha"]),
    )
    parts = ("add_q_proj", "add_k_proj", "add_v_proj")
    want = torch.cat([delta(mine[f"transformer_blocks.0.attn.{part}"]) for part in parts])
    assert torch.allclose(delta(fused), want, atol=1e-6)
    assert "lora_unet_joint_blocks_0_x_block_attn2_proj.alpha" in tensors


def test_sd3_with_only_some_of_q_k_v() -> None:
    block = "transformer_blocks.0.attn"
    weights = {
        f"{block}.to_q": LoraWeights(torch.randn(2, 8), torch.zeros(8, 2), 1.0),
        f"{block}.to_v": LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 1.0),
    }
    same({"transformer": weights}, kohya.parse(kohya.dump({"transformer": weights}, "sd3")))


def test_sd3_parts_of_different_rank_and_strength_keep_their_delta() -> None:
    block = "transformer_blocks.0.attn"
    weights = {
        f"{block}.to_q": LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 1.0),
        f"{block}.to_k": LoraWeights(torch.randn(4, 8), torch.randn(8, 4), 3.0),
    }
    read = kohya.parse(kohya.dump({"transformer": weights}, "sd3"))["transformer"]
    assert read.keys() == weights.keys()
    for module in weights:
        assert torch.allclose(delta(read[module]), delta(weights[module]), atol=1e-5)


def test_sd3_trained_on_the_fused_matrix() -> None:
    fused = LoraWeights(torch.randn(3, 8), torch.randn(24, 3), 2.0)
    name = "lora_unet_joint_blocks_7_x_block_attn_qkv"
    read = kohya.parse(
        {
            f"{name}.lora_down.weight": fused.down,
            f"{name}.lora_up.weight": fused.up,
            f"{name}.alpha": torch.tensor(2),
        }
    )["transformer"]
    parts = [delta(read[f"transformer_blocks.7.attn.{part}"]) for part in ("to_q", "to_k", "to_v")]
    assert torch.equal(torch.cat(parts), delta(fused))


# ---- flux: a single block's q, k, v and MLP in one matrix


def released_flux(alpha: float) -> Adapter:
    """Random weights with as many rows as FLUX.1 has, which diffusers' converters count on."""
    draw = torch.Generator().manual_seed(1)
    return {
        "transformer": {
            module: LoraWeights(
                torch.randn(RANK, 2, generator=draw),
                torch.randn(weights.up.shape[0] * 3072 // 8, RANK, generator=draw),
                alpha,
            )
            for module, weights in adapter("flux", alpha)["transformer"].items()
        }
    }


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
def test_diffusers_reads_flux_kohya_files(alpha: float) -> None:
    from diffusers import FluxPipeline

    mine = released_flux(alpha)
    read = FluxPipeline.lora_state_dict(kohya.dump(mine, "flux"))
    assert len(read) == 2 * len(mine["transformer"])
    for module, weights in mine["transformer"].items():
        down, up = (read[f"transformer.{module}.lora_{part}.weight"] for part in "AB")
        assert torch.allclose(up @ down, delta(weights), atol=1e-5), module


def test_comfyui_patches_flux_checkpoints_right() -> None:
    """As for SD 3 below; a converter reads what `lora_unet_<path>` adds to `<path>.weight`."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    mine = released_flux(0.7)
    deltas = ui_deltas(kohya.dump(mine, "flux"))
    patched = set()

    class Checkpoint(dict[str, Tensor]):
        def pop(self, key: str) -> Tensor:  # type: ignore[override]
            name = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
            if not key.endswith(".weight") or name not in deltas:
                return torch.zeros(21504, 1)
            patched.add(name)
            return deltas[name]

    blocks = [f"{kind}_blocks.{i}." for kind in ("double", "single") for i in range(2)]
    checkpoint = Checkpoint.fromkeys(blocks, torch.zeros(1))
    read = convert_flux_transformer_checkpoint_to_diffusers(checkpoint)
    assert patched == set(deltas), "ComfyUI: lora key not loaded"
    for module, weights in mine["transformer"].items():
        assert torch.allclose(read[f"{module}.weight"], delta(weights), atol=1e-6), module


def test_flux_without_the_mlp_of_single_blocks() -> None:
    block = "single_transformer_blocks.0.attn"
    weights = {
        f"{block}.to_q": LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 1.0),
        f"{block}.to_v": LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 1.0),
    }
    tensors = kohya.dump({"transformer": weights}, "flux")
    assert tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (7 * 8, 4 * 2)
    same({"transformer": weights}, kohya.parse(tensors))


# ---- diffusers loads both files


@contextlib.contextmanager
def complaints() -> Iterator[io.StringIO]:
    """What diffusers, transformers and PEFT log from WARNING on."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setLevel(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    yield text
    for logger in loggers:
        logger.removeHandler(handler)


def loaded_deltas(pipe: Any) -> dict[str, Tensor]:
    """delta W by "component.module" as PEFT will apply it, with its own scaling."""
    return {
        f"{name}.{module}": delta(weights)
        for name, part in components(pipe).items()
        for module, weights in collect(name, part, "ours").items()
    }


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize(
    ("family", "layout"),
    [(f, "diffusers") for f in FAMILIES] + [(f, "kohya") for f in FAMILIES if f not in BLOCKS],
)
def test_diffusers_loads_ours(family: str, layout: str, alpha: float, tmp_path: Path) -> None:
    # diffusers cannot read kohya files of SD 3, nor of a FLUX of another width than the released.
    mine = adapter(family, alpha)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    if layout == "diffusers":
        write_safetensors(file, *diffusers_layout.dump(mine))
    else:
        metadata = {"format": "pt", "ss_network_dim": "3"}
        write_safetensors(file, kohya.dump(mine, LAYOUT[family], LAYERS[family]), metadata)
    pipe = pipeline(family)
    with complaints() as text:
        pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="ours")
    assert not text.getvalue()
    got = loaded_deltas(pipe)
    want = {f"{c}.{m}": delta(w) for c, modules in mine.items() for m, w in modules.items()}
    assert got.keys() == want.keys()
    for module in want:
        assert torch.allclose(got[module], want[module], atol=1e-6), module


def test_diffusers_restores_mixed_ranks_and_alphas(tmp_path: Path) -> None:
    mine = adapter("sd1", 4.0)
    draw = torch.Generator().manual_seed(2)
    for i, (component, module) in enumerate((c, m) for c in mine for m in list(mine[c])):
        if i % 5 == 0:
            down, up = mine[component][module].down, mine[component][module].up
            down = torch.randn(2, *down.shape[1:], generator=draw)
            up = torch.randn(up.shape[0], 2, *up.shape[2:], generator=draw)
            mine[component][module] = LoraWeights(down, up, 1.5)
    write_safetensors(tmp_path / "x.safetensors", *diffusers_layout.dump(mine))
    pipe = pipeline("sd1")
    with complaints() as text:
        pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="ours")
    assert not text.getvalue()
    got = {name: collect(name, part, "ours") for name, part in components(pipe).items()}
    same(mine, got)


@pytest.mark.parametrize("part", [".q_proj", ".fc1"])
def test_diffusers_loads_any_choice_of_text_modules(part: str, tmp_path: Path) -> None:
    every = adapter("sd1", 4.0)["text_encoder"]
    mine: Adapter = {"text_encoder": {k: w for k, w in every.items() if k.endswith(part)}}
    write_safetensors(tmp_path / "x.safetensors", *diffusers_layout.dump(mine))
    pipe = pipeline("sd1")
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="ours")
    same(mine, {"text_encoder": collect("text_encoder", pipe.text_encoder, "ours")})


def test_reads_what_diffusers_writes(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = pipeline("sd1")
    pipe.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "conv1"], init_lora_weights=False)
    )
    pipe.text_encoder.add_adapter(
        LoraConfig(r=4, lora_alpha=1, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    )
    parts = {
        name: convert_state_dict_to_diffusers(get_peft_model_state_dict(part))
        for name, part in components(pipe).items()
    }
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        parts["unet"],
        parts["text_encoder"],
        unet_lora_adapter_metadata={"r": 2, "lora_alpha": 3},
        text_encoder_lora_adapter_metadata={"r": 4, "lora_alpha": 1},
    )
    file = tmp_path / "pytorch_lora_weights.safetensors"
    read = diffusers_layout.parse(load_file(file), read_header(file).metadata)
    same(read, {name: collect(name, part) for name, part in components(pipe).items()})


# ---- the rules of the UIs, written from their loaders' source


def ui_deltas(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A1111 (network_lora) and ComfyUI (weight_adapter/lora): alpha / rank, or 1 without alpha."""
    deltas = {}
    for key, up in tensors.items():
        if key.endswith(".lora_up.weight"):
            name = key.removesuffix(".lora_up.weight")
            down = tensors[f"{name}.lora_down.weight"]
            alpha = tensors.get(f"{name}.alpha")
            scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
            deltas[name] = (up.flatten(1) @ down.flatten(1)).reshape(-1, *down.shape[1:]) * scale
    return deltas


def comfy_targets(family: str) -> set[str]:
    """The names model_lora_keys_unet and model_lora_keys_clip accept for diffusers-named models."""
    prefix = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_")}
    prefix["text_encoder_2"] = ("lora_te2_",)
    return {
        p + key.partition(".")[2].replace(".", "_")
        for key in base(family)
        for p in prefix[key.partition(".")[0]]
    }


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_uis_apply_the_trained_strength(family: str, alpha: float) -> None:
    mine = adapter(family, alpha)
    deltas = ui_deltas(kohya.dump(mine, LAYOUT[family], LAYERS[family]))
    assert deltas.keys() <= comfy_targets(family), "ComfyUI: lora key not loaded"
    wants = [delta(w) for modules in mine.values() for w in modules.values()]
    assert len(deltas) == len(wants)
    for got, want in zip(deltas.values(), wants, strict=True):
        assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
def test_comfyui_patches_sd3_checkpoints_right(alpha: float) -> None:
    """ComfyUI adds to `<path>.weight` of the original checkpoint what `lora_unet_<path>` says.

    diffusers' converter of original checkpoints then says which of its modules that is.
    """
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    mine = {"transformer": adapter("sd3", alpha)["transformer"]}
    deltas = ui_deltas(kohya.dump(mine, "sd3"))
    patched = set()

    class Checkpoint(dict[str, Tensor]):
        def pop(self, key: str) -> Tensor:  # type: ignore[override]
            name = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
            if not key.endswith(".weight") or name not in deltas:
                return torch.zeros(48, 1)
            patched.add(name)
            return deltas[name]

    keys = [
        "joint_blocks.0.",
        "joint_blocks.1.",
        "joint_blocks.2.",
        "joint_blocks.0.x_block.attn2.",
    ]
    checkpoint = Checkpoint.fromkeys(keys, torch.zeros(1))
    checkpoint["context_embedder.weight"] = torch.zeros(8, 24)
    read = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    assert patched == set(deltas), "ComfyUI: lora key not loaded"
    for module, weights in mine["transformer"].items():
        assert torch.allclose(read[f"{module}.weight"], delta(weights), atol=1e-6), module


def invoke_base(tensors: dict[str, Tensor]) -> str:
    """InvokeAI's lora_token_vector_length and _get_base_or_raise: by the width of the text."""
    lengths: dict[str, int] = {}
    for key, tensor in tensors.items():
        if not key.endswith(".lora_down.weight"):
            continue
        if key.startswith("lora_unet_") and ("_attn2_to_k." in key or "_attn2_to_v." in key):
            return str(tensor.shape[1])
        if key.startswith("lora_te_") and "_self_attn_" in key:
            return str(tensor.shape[1])
        if key.startswith(("lora_te1_", "lora_te2_")) and "_self_attn_" in key:
            lengths[key[:8]] = tensor.shape[1]
        if len(lengths) == 2:
            return str(sum(lengths.values()))
    return "unrecognized"


@pytest.mark.parametrize("text", [True, False], ids=["text encoder", "denoiser only"])
@pytest.mark.parametrize(("family", "width"), [("sd1", "12"), ("sd2", "12"), ("sdxl", "24")])
def test_invokeai_knows_the_base(family: str, width: str, text: bool, tmp_path: Path) -> None:
    tensors = kohya.dump(adapter(family, 1, text=text), LAYOUT[family], LAYERS[family])
    write_safetensors(tmp_path / "x.safetensors", tensors)  # InvokeAI reads in the file's order
    order = read_header(tmp_path / "x.safetensors").tensors
    assert invoke_base({key: tensors[key] for key in order}) == width


def swarm_class(keys: set[str]) -> str:
    """SwarmUI's T2IModelClassSorter without metadata."""
    if any(
        key.startswith("lora_te1_") and key.endswith("self_attn_v_proj.lora_up.weight")
        for key in keys
    ):
        return "sdxl"
    if "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2.lora_up.weight" in keys:
        return "sdxl"
    sd1 = "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_2.lora_up.weight"
    return "sd1" if sd1 in keys else "unknown"


def test_swarmui_does_not_take_sd1_for_sdxl() -> None:
    assert swarm_class(set(kohya.dump(adapter("sd1", 1), "sd"))) != "sdxl"
    assert swarm_class(set(kohya.dump(adapter("sdxl", 1), "sdxl"))) == "sdxl"


# ---- what does not fit


def test_wrong_base_is_seen_by_shapes() -> None:
    assert misfits(signature(adapter("sd1", 1)), base("sd1")) == []
    wrong = misfits(signature(adapter("sd1", 1)), base("sd2"))
    assert any("proj_in is (8, 8) in the base model and (8, 8, 1, 1)" in line for line in wrong)
    wrong = misfits(signature(adapter("sd3", 1)), base("sdxl"))
    assert any("is not in the base model" in line for line in wrong)


UP, DOWN = torch.ones(4, 2), torch.ones(2, 3)
NAME = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({f"{NAME}.lora_up.weight": UP}, "it has lora_up.weight"),
        ({f"{NAME}.hada_w1_a": UP}, "it has hada_w1_a"),
        (
            {
                f"{NAME}.lora_up.weight": UP,
                f"{NAME}.lora_down.weight": DOWN,
                f"{NAME}.dora_scale": UP,
            },
            "dora_scale",
        ),
        ({f"{NAME}.lora_up.weight": UP, f"{NAME}.lora_down.weight": UP}, r"down is \(4, 2\)"),
        (
            {
                f"{NAME}.lora_up.weight": UP,
                f"{NAME}.lora_down.weight": DOWN,
                f"{NAME}.alpha": torch.tensor(math.nan),
            },
            "alpha nan",
        ),
        ({"x.lora_up.weight": UP, "x.lora_down.weight": DOWN}, "'x' names no known component"),
        (
            {
                "lora_unet_double_blocks_0_img.lora_up.weight": UP,
                "lora_unet_double_blocks_0_img.lora_down.weight": DOWN,
            },
            "names no known module",
        ),
    ],
)
def test_kohya_refuses_by_name(tensors: dict[str, Tensor], why: str) -> None:
    with pytest.raises(Damaged, match=why):
        kohya.parse(tensors)


@pytest.mark.parametrize(
    ("tensors", "metadata", "why"),
    [
        ({"unet.x.lora_B.weight": UP}, {}, "'unet.x.lora_B.weight' has no meaning"),
        ({"unet.x.lora_A.weight": DOWN}, {}, "no 'unet.x.lora_B.weight'"),
        ({"unet.x.lora_magnitude_vector": UP}, {}, "lora_magnitude_vector"),
        ({"vae.x.lora_A.weight": DOWN, "vae.x.lora_B.weight": UP}, {}, "no known component"),
        ({}, {"lora_adapter_metadata": "[1]"}, "not a JSON object"),
        (
            {"unet.x.lora_A.weight": DOWN, "unet.x.lora_B.weight": UP},
            {"lora_adapter_metadata": '{"unet.lora_alpha": "big"}'},
            "the alpha 'big'",
        ),
        (
            {"unet.x.lora_A.weight": DOWN, "unet.x.lora_B.weight": UP},
            {"lora_adapter_metadata": '{"unet.alpha_pattern": {"(x+x+)+y": 1}}'},
            "no map from module paths",
        ),
    ],
)
def test_diffusers_refuses_by_name(
    tensors: dict[str, Tensor], metadata: dict[str, str], why: str
) -> None:
    with pytest.raises(Damaged, match=why):
        diffusers_layout.parse(tensors, metadata)


def test_two_names_for_one_module_are_refused() -> None:
    tensors = {}
    for name in (
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_encoder_layers_0_mlp_fc1",
    ):
        tensors |= {f"{name}.lora_up.weight": UP, f"{name}.lora_down.weight": DOWN}
    with pytest.raises(Damaged, match="second LoRA"):
        kohya.parse(tensors)
    tensors = {}
    for name in ("text_encoder.text_model.encoder.x", "text_encoder.encoder.x"):
        tensors |= {f"{name}.lora_A.weight": DOWN, f"{name}.lora_B.weight": UP}
    with pytest.raises(Damaged, match="second LoRA"):
        diffusers_layout.parse(tensors, {})


def test_rslora_is_read_at_its_strength() -> None:
    tensors = {"unet.x.lora_A.weight": torch.ones(4, 3), "unet.x.lora_B.weight": torch.ones(5, 4)}
    config = '{"unet.lora_alpha": 2, "unet.use_rslora": true}'
    (weights,) = diffusers_layout.parse(tensors, {"lora_adapter_metadata": config})["unet"].values()
    assert torch.equal(delta(weights), 2 / math.sqrt(4) * torch.full((5, 3), 4.0))


word = st.sampled_from(["lora_unet", "lora_te1", "unet", *kohya.WORDS.split(), "0", "7", "x"])
part = st.sampled_from(["lora_up.weight", "lora_down.weight", "alpha", "lora_A.weight", "diff"])
tensor = st.lists(st.integers(0, 4), max_size=4).map(torch.ones)
fields = st.sampled_from(
    ["unet.r", "unet.lora_alpha", "unet.alpha_pattern", "unet.use_rslora", "x"]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
)


@settings(max_examples=300, deadline=None)
@given(
    names=st.lists(st.lists(word, min_size=1, max_size=6), max_size=4),
    parts=st.lists(part, min_size=1, max_size=4),
    tensors=st.lists(tensor, min_size=16, max_size=16),
    config=st.dictionaries(fields, values),
)
def test_only_user_errors_escape(
    names: list[list[str]], parts: list[str], tensors: list[Tensor], config: dict[str, Any]
) -> None:
    for sign, parse in {
        "_": kohya.parse,
        ".": partial(
            diffusers_layout.parse, metadata={"lora_adapter_metadata": json.dumps(config)}
        ),
    }.items():
        keys = [f"{sign.join(name)}.{part}" for name in names for part in parts]
        with contextlib.suppress(UserError):
            parse(dict(zip(keys, tensors, strict=False)))


def test_scalars_are_no_lora() -> None:
    one = torch.ones([])
    for name, parse in {
        "lora_unet_x.lora_{}.weight": kohya.parse,
        "unet.x.lora_{}.weight": partial(diffusers_layout.parse, metadata={}),
    }.items():
        for down, up in (("down", "up"), ("A", "B")):
            with pytest.raises(Damaged):
                parse({name.format(down): one, name.format(up): one})


def test_unknown_layouts_and_components() -> None:
    with pytest.raises(Usage, match="did you mean 'sdxl'"):
        kohya.dump({}, "sdxll")
    one = LoraWeights(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    with pytest.raises(Usage, match="text_encoder_2"):
        kohya.dump({"text_encoder_2": {"text_projection": one}}, "sd")
    with pytest.raises(Usage, match="norm_out"):
        kohya.dump({"transformer": {"norm_out.linear": one}}, "sd3")
