"""LoRA and DoRA layouts on tiny real models: there and back, each by its own rule."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from dreamtune.errors import Damaged, Usage, UserError
from dreamtune.formats import adapters, kohya, peft, proof
from dreamtune.formats import diffusers as diffusers_layout
from dreamtune.formats.ldm import Blocks
from dreamtune.formats.lora import (
    Adapter,
    LoraWeights,
    delta,
    for_base_norm,
    misfits,
    shapes,
    signature,
)
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
    deltas,
    has_name,
    same,
    weight_of,
    weights,
)
from tests.faults import EVERYTHING


def read(tensors: dict[str, Tensor], metadata: Any = None, blocks: Blocks = Blocks()) -> Any:
    return adapters.parse(tensors, metadata or {}, blocks).adapter


# ---- there and back


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trips(family: str, dora: bool, alpha: float, tmp_path: Path) -> None:
    mine = adapter(family, alpha, dora=dora)
    file = tmp_path / "k.safetensors"
    write_safetensors(file, *kohya.dump(mine, LAYOUT[family], BLOCKS[family]))
    same(mine, adapters.read_adapter(file, BLOCKS[family]).adapter)
    parts = load_file(file)
    assert all(t.dtype == torch.float32 for key, t in parts.items() if key.endswith(".alpha"))
    assert len(parts) % (4 if dora else 3) == 0, "down, up, alpha (and magnitude) by module"

    file = tmp_path / "d.safetensors"
    write_safetensors(file, *diffusers_layout.dump(mine))
    same(mine, adapters.read_adapter(file).adapter)

    for component, updates in mine.items():
        tensors, config = peft.dump(
            component, updates, flat=component == "text_encoder" and family != "sd3"
        )
        folder = tmp_path / "p" / component
        folder.mkdir(parents=True)
        write_safetensors(folder / peft.FILE, tensors)
        (folder / peft.CONFIG).write_text(json.dumps(config))
    same(mine, adapters.read_adapter(tmp_path / "p").adapter)
    one = min(mine)
    same({one: mine[one]}, adapters.read_adapter(tmp_path / "p" / one).adapter)


PARTS = [(f, k) for f in FAMILIES for k in ("linear", "conv")]
PARTS.remove(("flux", "conv"))  # it has no convolution


@pytest.mark.parametrize("text", [True, False], ids=["text encoder", "denoiser only"])
@pytest.mark.parametrize(("family", "kind"), PARTS)
def test_a_part_of_the_modules(family: str, text: bool, kind: str) -> None:
    mine = adapter(family, 0.7, text, kind)
    assert mine
    same(mine, read(*kohya.dump(mine, LAYOUT[family], BLOCKS[family]), BLOCKS[family]))
    same(mine, read(*diffusers_layout.dump(mine)))


@pytest.mark.parametrize("family", FAMILIES)
def test_covers_linear_and_convolution(family: str) -> None:
    shapes = {len(u.shape) for modules in adapter(family, 1).values() for u in modules.values()}
    assert shapes == ({2} if family == "flux" else {2, 4})


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
    if family in TRANSFORMERS:
        assert all(has_name(family, module) for module in modules)
    form = kohya.LAYOUTS[LAYOUT[family]]
    one, wide = (LoraWeights(torch.ones(3, 2), torch.ones(n, 3), 3.0) for n in (3, 12))
    mine: Adapter = {form.denoiser: {m: wide if "proj_mlp" in m else one for m in modules}}
    blocks = Blocks.of(model.config)
    found = read(*kohya.dump(mine, LAYOUT[family], blocks), blocks)
    assert found[form.denoiser].keys() == set(modules)


def test_sdxl_writes_sgm_blocks_and_reads_both() -> None:
    mine = adapter("sdxl", 2.0)
    names = {key.partition(".")[0] for key in kohya.dump(mine, "sdxl")[0]}
    # Two that SwarmUI knows SDXL by (SDXL proper has them at these places too).
    assert "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2" in names
    assert "lora_te1_text_model_encoder_layers_0_self_attn_v_proj" in names
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in names
    assert "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k" in names
    assert not any("down_blocks" in name or "lora_te_" in name for name in names)
    by_diffusers = kohya.dump({"unet": mine["unet"]}, "sd")
    same({"unet": mine["unet"]}, read(*by_diffusers))


def test_missing_alpha_means_scale_one() -> None:
    tensors, _ = kohya.dump(adapter("sd1", 0.7), "sd")
    bare = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    assert {w.alpha for m in read(bare).values() for w in m.values()} == {RANK}
    tensors, _ = diffusers_layout.dump(adapter("sd1", 0.7))
    parsed = read(tensors)
    assert {w.alpha for m in parsed.values() for w in m.values()} == {RANK}


def test_other_ranks_and_alphas_by_module() -> None:
    mine = adapter("sd1", 4.0)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    mine["unet"][name] = LoraWeights(torch.randn(5, 8), torch.randn(8, 5), 1.25)
    mine["text_encoder"]["text_model.encoder.layers.1.mlp.fc1"] = LoraWeights(
        torch.randn(1, 12), torch.randn(16, 1), 8.0
    )
    same(mine, read(*kohya.dump(mine, "sd")))
    same(mine, read(*diffusers_layout.dump(mine)))


def test_delta_is_the_formula() -> None:
    weights = LoraWeights(torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1), 0.5)
    want = torch.einsum("orxy,rihw->oihw", weights.up, weights.down) * 0.25
    assert torch.allclose(delta(weights), want, atol=1e-6)


# ---- sd3: q, k and v in one matrix


def test_sd3_fused_delta_is_the_three_deltas() -> None:
    mine = adapter("sd3", 0.7)["transformer"]
    tensors, _ = kohya.dump({"transformer": mine}, "sd3")
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
    weights: Any = {
        f"{block}.to_q": LoraWeights(torch.randn(2, 8), torch.zeros(8, 2), 1.0),
        f"{block}.to_v": LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 1.0),
    }
    same({"transformer": weights}, read(*kohya.dump({"transformer": weights}, "sd3")))


def test_sd3_parts_of_different_rank_and_strength_keep_their_delta() -> None:
    block = "transformer_blocks.0.attn"
    weights: Any = {
        f"{block}.to_q": LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 1.0),
        f"{block}.to_k": LoraWeights(torch.randn(4, 8), torch.randn(8, 4), 3.0),
    }
    found = read(*kohya.dump({"transformer": weights}, "sd3"))["transformer"]
    assert found.keys() == weights.keys()
    for module in weights:
        assert torch.allclose(delta(found[module]), delta(weights[module]), atol=1e-5)


def test_sd3_trained_on_the_fused_matrix() -> None:
    fused = LoraWeights(torch.randn(3, 8), torch.randn(24, 3), 2.0)
    name = "lora_unet_joint_blocks_7_x_block_attn_qkv"
    found = read(
        {
            f"{name}.lora_down.weight": fused.down,
            f"{name}.lora_up.weight": fused.up,
            f"{name}.alpha": torch.tensor(2),
        }
    )["transformer"]
    parts = [delta(found[f"transformer_blocks.7.attn.{part}"]) for part in ("to_q", "to_k", "to_v")]
    assert torch.equal(torch.cat(parts), delta(fused))


# ---- flux: a single block's q, k, v and MLP in one matrix


def test_flux_without_the_mlp_of_single_blocks() -> None:
    block = "single_transformer_blocks.0.attn"
    weights: Any = {
        f"{block}.to_q": LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 1.0),
        f"{block}.to_v": LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 1.0),
    }
    tensors, metadata = kohya.dump({"transformer": weights}, "flux")
    assert tensors["lora_unet_single_blocks_0_linear1.lora_up.weight"].shape == (7 * 8, 4 * 2)
    same({"transformer": weights}, read(tensors, metadata))


# ---- DoRA


def test_dora_is_the_formula_of_the_paper() -> None:
    weight, update = torch.randn(5, 4), LoraWeights(torch.randn(2, 4), torch.randn(5, 2), 1.0)
    magnitude = torch.rand(5, 1) + 1
    changed = weight + delta(update)
    rows = [m * row / row.square().sum().sqrt() for m, row in zip(magnitude, changed, strict=True)]
    dora = LoraWeights(update.down, update.up, 1.0, magnitude)
    assert torch.allclose(delta(dora, weight), torch.stack(rows) - weight, atol=1e-6)
    with pytest.raises(Usage, match="depends on the base"):
        delta(dora)


def test_dora_of_each_input_as_old_lycoris_has_it() -> None:
    weight, update = torch.randn(5, 4), LoraWeights(torch.randn(2, 4), torch.randn(5, 2), 2.0)
    magnitude = torch.rand(1, 4) + 1
    changed = weight + delta(update)
    want = magnitude * changed / changed.norm(dim=0, keepdim=True) - weight
    dora = LoraWeights(update.down, update.up, 2.0, magnitude)
    assert torch.allclose(delta(dora, weight), want, atol=1e-6)
    mine: Adapter = {"unet": {"down_blocks.0.attentions.0.proj_in": dora}}
    same(mine, read(*kohya.dump(mine, "sd")))
    with pytest.raises(Usage, match="magnitude for each input"):
        diffusers_layout.dump(mine)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_magnitudes_for_the_norm_of_the_base_are_marked_and_turned_back(family: str) -> None:
    mine = adapter(family, 0.7, dora=True)
    for_uis = for_base_norm(mine, weight_of(family), True)
    tensors, metadata = kohya.dump(for_uis, LAYOUT[family], BLOCKS[family])
    found = read(tensors, metadata, BLOCKS[family])
    want = deltas(mine, family)
    for module, change in deltas(found, family).items():
        assert torch.allclose(change, want[module], atol=1e-6), module
    with pytest.raises(Usage, match="name the base"):
        diffusers_layout.dump(found)
    back = read(*diffusers_layout.dump(for_base_norm(found, weight_of(family), False)))
    for module, change in deltas(back, family).items():
        assert torch.allclose(change, want[module], atol=1e-6), module


def test_a_mixture_of_lora_and_dora_is_kohyas_alone() -> None:
    mine = adapter("sd1", 1, text=False, kind="linear", dora=True)
    module = min(mine["unet"])
    mine["unet"][module] = adapter("sd1", 1)["unet"][module]
    same(mine, read(*kohya.dump(mine, "sd")))
    with pytest.raises(Usage, match="for all or none"):
        diffusers_layout.dump(mine)


def test_sd3_needs_the_magnitudes_of_all_three() -> None:
    mine = adapter("sd3", 1, text=False, dora=True)
    del mine["transformer"]["transformer_blocks.0.attn.to_k"]
    with pytest.raises(Usage, match="cannot hold the DoRA"):
        kohya.dump(mine, "sd3")


# ---- the proof at save time


def test_a_file_that_is_not_what_was_trained_is_caught() -> None:
    mine = adapter("sd1", 0.7, dora=True)
    truth = deltas(mine, "sd1")
    live = [(*name.split(".", 1), weights("sd1")[name], change) for name, change in truth.items()]
    files = {
        "k": proof.read_back(*kohya.dump(mine, "sd")),
        "d": proof.read_back(*diffusers_layout.dump(mine)),
    }
    proof.check(files, live)  # type: ignore[arg-type]
    with pytest.raises(Damaged, match=r"k would not give .* unet\.conv_in .*it was not trained"):
        proof.check(files, live[1:])  # type: ignore[arg-type]
    component, module, weight, change = live[7]
    live[7] = component, module, weight, change * (1 + 1e-4)
    with pytest.raises(Damaged, match=module):
        proof.check(files, live)  # type: ignore[arg-type]


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
        ({f"{NAME}.oft_blocks": UP}, "it has oft_blocks"),
        (
            {
                f"{NAME}.lora_up.weight": UP,
                f"{NAME}.lora_down.weight": DOWN,
                f"{NAME}.diff_b": UP,
            },
            "diff_b",
        ),
        (
            {
                f"{NAME}.lora_up.weight": UP,
                f"{NAME}.lora_down.weight": DOWN,
                f"{NAME}.dora_scale": UP,
            },
            r"its magnitude is \(4, 2\) for a weight of \(4, 3\)",
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
        (
            {"x.lora_up.weight": UP, f"{NAME}.lora_down.weight": DOWN},
            "'x' names no known component",
        ),
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
        read(tensors)


@pytest.mark.parametrize(
    ("tensors", "metadata", "why"),
    [
        ({"unet.x.lora_B.weight": UP}, {}, "it has lora_up.weight"),
        ({"unet.x.lora_A.weight": DOWN}, {}, "it has lora_down.weight"),
        ({"unet.x.lora_magnitude_vector": UP}, {}, "it has magnitude"),
        ({"unet.x.lora_A.weight": DOWN, "unet.x.bias": UP}, {}, "'unet.x.bias' has no meaning"),
        ({"vae.x.lora_A.weight": DOWN, "vae.x.lora_B.weight": UP}, {}, "no known component"),
        (
            {"unet.x.lora_A.weight": DOWN, "unet.x.lora_B.weight": UP},
            {"lora_adapter_metadata": "[1]"},
            "not a JSON object",
        ),
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
        read(tensors, metadata)


def test_two_names_for_one_module_are_refused() -> None:
    tensors = {}
    for name in (
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_encoder_layers_0_mlp_fc1",
    ):
        tensors |= {f"{name}.lora_up.weight": UP, f"{name}.lora_down.weight": DOWN}
    with pytest.raises(Damaged, match="second LoRA"):
        read(tensors)
    tensors = {}
    for name in ("text_encoder.text_model.encoder.layers.0", "text_encoder.encoder.layers.0"):
        tensors |= {f"{name}.lora_A.weight": DOWN, f"{name}.lora_B.weight": UP}
    with pytest.raises(Damaged, match="second LoRA"):
        read(tensors)


def test_rslora_is_read_at_its_strength() -> None:
    tensors = {"unet.x.lora_A.weight": torch.ones(4, 3), "unet.x.lora_B.weight": torch.ones(5, 4)}
    config = '{"unet.lora_alpha": 2, "unet.use_rslora": true}'
    (weights,) = read(tensors, {"lora_adapter_metadata": config})["unet"].values()
    assert torch.equal(delta(weights), 2 / math.sqrt(4) * torch.full((5, 3), 4.0))


word = st.sampled_from(["lora_unet", "lora_te1", "unet", *kohya.WORDS.split(), "0", "7", "x"])
PARTS = """lora_up.weight lora_down.weight lora_mid.weight alpha dora_scale diff lora_A.weight
lora_B.weight lora_magnitude_vector hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 lokr_w1 lokr_w2
lokr_w2_a lokr_w2_b lokr_t2"""
part = st.sampled_from(PARTS.split())
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


@settings(max_examples=20_000 if EVERYTHING else 300, deadline=None)
@given(
    names=st.lists(st.lists(word, min_size=1, max_size=6), max_size=4),
    parts=st.lists(part, min_size=1, max_size=5),
    tensors=st.lists(tensor, min_size=20, max_size=20),
    config=st.dictionaries(fields, values),
)
def test_only_user_errors_escape(
    names: list[list[str]], parts: list[str], tensors: list[Tensor], config: dict[str, Any]
) -> None:
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    for sign in "_.":
        keys = [f"{sign.join(name)}.{part}" for name in names for part in parts]
        with contextlib.suppress(UserError):
            adapters.parse(dict(zip(keys, tensors, strict=False)), metadata)


def test_scalars_are_no_lora() -> None:
    one = torch.ones([])
    for name in (NAME, "unet.x"):
        for down, up in (("down", "up"), ("A", "B")):
            with pytest.raises(Damaged):
                read({f"{name}.lora_{down}.weight": one, f"{name}.lora_{up}.weight": one})


def test_unknown_layouts_and_components() -> None:
    with pytest.raises(Usage, match="did you mean 'sdxl'"):
        kohya.dump({}, "sdxll")
    one = LoraWeights(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    with pytest.raises(Usage, match="text_encoder_2"):
        kohya.dump({"text_encoder_2": {"text_projection": one}}, "sd")
    with pytest.raises(Usage, match="no name for the module 'norm_in'"):
        kohya.dump({"transformer": {"norm_in": one}}, "sd3")
