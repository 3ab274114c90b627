"""Adapter files as other programs read them: diffusers and PEFT themselves, and the rules of the
user interfaces, written here from their loaders' source and not from our own code."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamtune.formats import adapters, kohya, ldm, peft
from dreamtune.formats import diffusers as diffusers_layout
from dreamtune.formats.header import read_header
from dreamtune.formats.lora import Adapter, LoraWeights, collect, for_base_norm, live_deltas
from dreamtune.fsops import write_safetensors
from tests.adapters import (
    ALPHAS,
    BLOCKS,
    FAMILIES,
    LAYOUT,
    RANK,
    TRANSFORMERS,
    adapter,
    base,
    components,
    deltas,
    pipeline,
    same,
    weight_of,
    weights,
)


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
    """What PEFT adds to the weight of each "component.module", with its own scaling."""
    return {
        f"{component}.{module}": change
        for name, part in components(pipe).items()
        for component, module, _, change in live_deltas(name, part, "ours")
    }


def alike(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for module in want:
        assert torch.allclose(got[module], want[module], atol=1e-6), module


# ---- diffusers and PEFT


@pytest.mark.parametrize(
    ("family", "layout", "alpha"),
    [(f, layout, 0.7) for f in FAMILIES for layout in ("diffusers", "kohya", "dora")]
    + [("sd1", layout, RANK) for layout in ("diffusers", "kohya", "dora")],
)
def test_diffusers_loads_ours(family: str, layout: str, alpha: float, tmp_path: Path) -> None:
    if family in TRANSFORMERS and layout == "kohya":
        pytest.skip("diffusers has no map for kohya files of SD 3, nor for a narrow FLUX")
    # DoRA in diffusers' layout: from kohya files it is left out, with a warning.
    mine = adapter(family, alpha, dora=layout == "dora", every=5 if layout == "dora" else 1)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    if layout == "kohya":
        tensors, metadata = kohya.dump(mine, LAYOUT[family], BLOCKS[family])
        write_safetensors(file, tensors, {**metadata, "ss_network_dim": "3"})
    else:
        write_safetensors(file, *diffusers_layout.dump(mine))
    pipe = pipeline(family)
    with complaints() as text:
        pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="ours")
    assert not text.getvalue()
    alike(loaded_deltas(pipe), deltas(mine, family))


def test_diffusers_restores_mixed_ranks_and_alphas(tmp_path: Path) -> None:
    mine: Any = adapter("sd1", 4.0)
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


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("part", [".q_proj", ".fc1"])
def test_diffusers_loads_any_choice_of_text_modules(part: str, dora: bool, tmp_path: Path) -> None:
    every = adapter("sd1", 4.0, dora=dora)["text_encoder"]
    mine: Adapter = {"text_encoder": {k: w for k, w in every.items() if k.endswith(part)}}
    write_safetensors(tmp_path / "x.safetensors", *diffusers_layout.dump(mine))
    pipe = pipeline("sd1")
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="ours")
    same(mine, {"text_encoder": collect("text_encoder", pipe.text_encoder, "ours")})


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_peft_loads_ours(family: str, dora: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    mine = adapter(family, 0.7, dora=dora, every=3)
    pipe, want = pipeline(family), deltas(mine, family)
    for component, updates in mine.items():
        folder = tmp_path / component
        folder.mkdir()
        tensors, config = peft.dump(component, updates, flat=component == "text_encoder")
        write_safetensors(folder / peft.FILE, tensors, {"format": "pt"})
        (folder / peft.CONFIG).write_text(json.dumps(config))
        model = PeftModel.from_pretrained(getattr(pipe, component), folder, adapter_name="ours")
        live = live_deltas(component, model.base_model.model, "ours")
        got = {f"{c}.{module}": change for c, module, _, change in live}
        alike(got, {k: change for k, change in want.items() if k.startswith(f"{component}.")})


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own
@pytest.mark.filterwarnings("ignore:The PEFT config's .base_model_name_or_path:UserWarning")
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_reads_what_peft_and_diffusers_write(dora: bool, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    pipe = pipeline("sd1")
    wanted = {"unet": (2, 3, ["to_q", "conv1"]), "text_encoder": (4, 1, ["q_proj", "fc1"])}
    for name, (r, alpha, targets) in wanted.items():
        config = LoraConfig(
            r=r, lora_alpha=alpha, target_modules=targets, init_lora_weights=False, use_dora=dora
        )
        getattr(pipe, name).add_adapter(config)
        model = get_peft_model(getattr(pipeline("sd1"), name), config)
        model.save_pretrained(tmp_path / name)
        found = adapters.read_adapter(tmp_path / name).adapter
        same(found, {name: collect(name, model.base_model.model)})
    parts = {
        name: convert_state_dict_to_diffusers(get_peft_model_state_dict(part))
        for name, part in components(pipe).items()
    }
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        parts["unet"],
        parts["text_encoder"],
        unet_lora_adapter_metadata={"r": 2, "lora_alpha": 3, "use_dora": dora},
        text_encoder_lora_adapter_metadata={"r": 4, "lora_alpha": 1, "use_dora": dora},
    )
    read = adapters.read_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert read.layout == "diffusers"
    same(read.adapter, {name: collect(name, part) for name, part in components(pipe).items()})


# ---- the rules of the user interfaces


def ui_delta(tensors: dict[str, Tensor], name: str, weight: Tensor, rule: str) -> Tensor:
    """What a user interface adds to `weight`.

    Scale (A1111 network_lora, ComfyUI weight_adapter/lora): alpha / rank, or 1 without alpha.
    DoRA, rule "comfy" (ComfyUI weight_decompose, and Forge's): the norm of each output's weights in
    the base; rule "lycoris" (LoConModule.apply_weight_decompose): in the sum.
    """
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    alpha = tensors.get(f"{name}.alpha")
    scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
    change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * scale
    magnitude = tensors.get(f"{name}.dora_scale")
    if magnitude is None:
        return change
    assert magnitude.shape[0] == weight.shape[0] and magnitude.dim() == weight.dim()
    normed = weight if rule == "comfy" else weight + change
    norm = normed.reshape(weight.shape[0], -1).norm(dim=1).reshape(magnitude.shape)
    return (weight + change) * (magnitude / norm) - weight


def names_of(tensors: dict[str, Tensor]) -> list[str]:
    return [k.removesuffix(".lora_up.weight") for k in tensors if k.endswith(".lora_up.weight")]


def diffusers_names(family: str) -> dict[str, str]:
    """What model_lora_keys_unet and model_lora_keys_clip of ComfyUI accept: name -> module."""
    prefix = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_")}
    prefix["text_encoder_2"] = ("lora_te2_",)
    names = {
        p + key.partition(".")[2].replace(".", "_"): key
        for key in base(family)
        for p in prefix[key.partition(".")[0]]
    }
    return names | (sgm_names(family) if family == "sdxl" else {})


def sgm_names(family: str) -> dict[str, str]:
    """The modules of Stability's UNet as diffusers' converter of checkpoints maps them.

    Each weight of the checkpoint is its own number, by which it is known again.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    names = ldm.unet_names(BLOCKS[family])
    ours = [key.removeprefix("unet.") for key in base(family) if key.startswith("unet.")]
    theirs = [ldm.renamed(path, names) or path for path in ours]
    leaves = [(path, leaf) for path in theirs for leaf in ("weight", "bias")]
    checkpoint = {
        f"model.diffusion_model.{path}.{leaf}": torch.tensor(i)
        for i, (path, leaf) in enumerate(leaves)
    }
    read = convert_ldm_unet_checkpoint(checkpoint, dict(pipeline(family).unet.config))
    return {
        f"lora_unet_{leaves[int(i)][0].replace('.', '_')}": f"unet.{key.removesuffix('.weight')}"
        for key, i in read.items()
        if key.endswith(".weight")
    }


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("text", [True, False], ids=["text encoder", "denoiser only"])
@pytest.mark.parametrize("kind", ["linear", "conv", "dora"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_uis_apply_the_trained_strength(family: str, kind: str, text: bool, alpha: float) -> None:
    dora = kind == "dora"
    mine = adapter(family, alpha, text, "all" if dora else kind, dora)
    want, known = deltas(mine, family), diffusers_names(family)
    for rule, base_norm in (("comfy", True), ("lycoris", False)):
        given = for_base_norm(mine, weight_of(family), base_norm)
        tensors, _ = kohya.dump(given, LAYOUT[family], BLOCKS[family])
        assert set(names_of(tensors)) <= known.keys(), "ComfyUI: lora key not loaded"
        got = {
            known[name]: ui_delta(tensors, name, weights(family)[known[name]], rule)
            for name in names_of(tensors)
        }
        alike(got, want)


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
def test_comfyui_patches_sd3_checkpoints_right(alpha: float) -> None:
    """ComfyUI adds to `<path>.weight` of the original checkpoint what `lora_unet_<path>` says.

    diffusers' converter of original checkpoints then says which of its modules that is.
    """
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    mine = {"transformer": adapter("sd3", alpha)["transformer"]}
    tensors, _ = kohya.dump(mine, "sd3")
    patched = set()

    class Checkpoint(dict[str, Tensor]):
        def pop(self, key: str) -> Tensor:  # type: ignore[override]
            name = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
            if not key.endswith(".weight") or f"{name}.lora_up.weight" not in tensors:
                return torch.zeros(48, 1)
            patched.add(name)
            up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
            return ui_delta(tensors, name, torch.zeros(up.shape[0], *down.shape[1:]), "comfy")

    keys = [
        "joint_blocks.0.",
        "joint_blocks.1.",
        "joint_blocks.2.",
        "joint_blocks.0.x_block.attn2.",
    ]
    checkpoint = Checkpoint.fromkeys(keys, torch.zeros(1))
    checkpoint["context_embedder.weight"] = torch.zeros(8, 24)
    read = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    assert patched == set(names_of(tensors)), "ComfyUI: lora key not loaded"
    for module, want in deltas(mine, "sd3").items():
        got = read[f"{module.removeprefix('transformer.')}.weight"]
        assert torch.allclose(got, want, atol=1e-6), module


def released_flux(alpha: float) -> Adapter:
    """Random weights with as many rows as FLUX.1 has, which diffusers' converters count on."""
    draw = torch.Generator().manual_seed(1)
    return {
        "transformer": {
            module: LoraWeights(
                torch.randn(RANK, 2, generator=draw),
                torch.randn(update.shape[0] * 3072 // 8, RANK, generator=draw),
                alpha,
            )
            for module, update in adapter("flux", alpha)["transformer"].items()
            if "transformer_blocks" in module
        }
    }


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
def test_diffusers_reads_flux_kohya_files(alpha: float) -> None:
    from diffusers import FluxPipeline

    mine = released_flux(alpha)
    read = FluxPipeline.lora_state_dict(kohya.dump(mine, "flux")[0])
    assert len(read) == 2 * len(mine["transformer"])
    for module, update in mine["transformer"].items():
        down, up = (read[f"transformer.{module}.lora_{part}.weight"] for part in "AB")
        assert torch.allclose(up @ down, update.change(), atol=1e-5), module


def test_comfyui_patches_flux_checkpoints_right() -> None:
    """As for SD 3; a converter reads what `lora_unet_<path>` adds to `<path>.weight`."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    mine = released_flux(0.7)
    tensors, _ = kohya.dump(mine, "flux")
    patched = set()

    class Checkpoint(dict[str, Tensor]):
        def pop(self, key: str) -> Tensor:  # type: ignore[override]
            name = f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}"
            if not key.endswith(".weight") or f"{name}.lora_up.weight" not in tensors:
                return torch.zeros(21504, 1)
            patched.add(name)
            up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
            return ui_delta(tensors, name, torch.zeros(up.shape[0], down.shape[1]), "comfy")

    blocks = [f"{kind}_blocks.{i}." for kind in ("double", "single") for i in range(2)]
    checkpoint = Checkpoint.fromkeys(blocks, torch.zeros(1))
    read = convert_flux_transformer_checkpoint_to_diffusers(checkpoint)
    assert patched == set(names_of(tensors)), "ComfyUI: lora key not loaded"
    for module, update in mine["transformer"].items():
        assert torch.allclose(read[f"{module}.weight"], update.change(), atol=1e-6), module


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
    tensors, _ = kohya.dump(adapter(family, 1, text=text), LAYOUT[family], BLOCKS[family])
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
    assert swarm_class(set(kohya.dump(adapter("sd1", 1), "sd")[0])) != "sdxl"
    assert swarm_class(set(kohya.dump(adapter("sdxl", 1), "sdxl")[0])) == "sdxl"
