"""Adapter files of other programs: every layout by its own formula, every stranger by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamtune.errors import Damaged, NotFound, Unsafe
from dreamtune.formats import adapters, kohya
from dreamtune.formats import diffusers as diffusers_layout
from dreamtune.formats.lora import Update, delta
from dreamtune.fsops import write_safetensors
from tests.adapters import adapter, clip, same, unet

LINEAR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def read(tensors: dict[str, Tensor], metadata: Any = None) -> adapters.Found:
    return adapters.parse(tensors, metadata or {})


def only(tensors: dict[str, Tensor], metadata: Any = None) -> Update:
    (modules,) = read(tensors, metadata).adapter.values()
    (update,) = modules.values()
    return update


def parts(name: str, **tensors: Tensor | float) -> dict[str, Tensor]:
    return {f"{name}.{part}": torch.as_tensor(t) for part, t in tensors.items()}


# ---- LyCORIS


def tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """rebuild_tucker of lycoris/functional/general.py, by loops: core (r, r, ...), a (r, out)."""
    found = torch.zeros(a.shape[1], b.shape[1], *core.shape[2:])
    for i in range(core.shape[0]):
        for j in range(core.shape[1]):
            outer = torch.outer(a[i], b[j])
            found += outer[:, :, None, None] * core[i, j]
    return found


def loha(rank: int, wide: int) -> dict[str, Tensor]:
    w = {"hada_w1_a": torch.randn(6, rank), "hada_w1_b": torch.randn(rank, wide)}
    return w | {"hada_w2_a": torch.randn(6, rank), "hada_w2_b": torch.randn(rank, wide)}


R = torch.randn
CORED = {"w1_a": R(2, 6), "w1_b": R(2, 5), "w2_a": R(2, 6), "w2_b": R(2, 5)}
CORES = {"hada_t1": R(2, 2, 3, 3), "hada_t2": R(2, 2, 3, 3)}
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "loha": (
        LINEAR,
        {**loha(2, 5), "alpha": 0.7},
        lambda p: 0.35 * (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"]),
    ),
    "loha of high rank": (
        LINEAR,
        {**loha(3, 5)},
        lambda p: (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"]),
    ),
    "loha of a convolution": (
        CONV,
        {**loha(2, 45), "alpha": 2.0},
        lambda p: (p["hada_w1_a"] @ p["hada_w1_b"]) * (p["hada_w2_a"] @ p["hada_w2_b"]),
    ),
    "loha with cores": (
        CONV,
        {f"hada_{k}": v for k, v in CORED.items()} | CORES | {"alpha": 1.0},
        lambda p: (
            0.5
            * tucker(p["hada_t1"], p["hada_w1_a"], p["hada_w1_b"])
            * tucker(p["hada_t2"], p["hada_w2_a"], p["hada_w2_b"])
        ),
    ),
    "lokr": (
        LINEAR,
        {"lokr_w1": R(2, 3), "lokr_w2_a": R(4, 2), "lokr_w2_b": R(2, 5), "alpha": 1.0},
        lambda p: 0.5 * torch.kron(p["lokr_w1"], p["lokr_w2_a"] @ p["lokr_w2_b"]),
    ),
    "lokr of two pairs": (
        LINEAR,
        {
            "lokr_w1_a": R(6, 1),
            "lokr_w1_b": R(1, 6),
            "lokr_w2_a": R(4, 2),
            "lokr_w2_b": R(2, 5),
            "alpha": 3.0,
        },
        lambda p: (
            1.5 * torch.kron(p["lokr_w1_a"] @ p["lokr_w1_b"], p["lokr_w2_a"] @ p["lokr_w2_b"])
        ),
    ),
    "lokr of whole matrices, whose alpha no reader uses": (
        LINEAR,
        {"lokr_w1": R(2, 3), "lokr_w2": R(4, 5), "alpha": 7.0},
        lambda p: torch.kron(p["lokr_w1"], p["lokr_w2"]),
    ),
    "lokr of a convolution": (
        CONV,
        {"lokr_w1": R(2, 3), "lokr_w2": R(4, 5, 3, 3)},
        lambda p: torch.kron(p["lokr_w1"][:, :, None, None], p["lokr_w2"]),
    ),
    "lokr with a core": (
        CONV,
        {
            "lokr_w1": R(2, 3),
            "lokr_w2_a": R(2, 4),
            "lokr_w2_b": R(2, 5),
            "lokr_t2": R(2, 2, 3, 3),
            "alpha": 4.0,
        },
        lambda p: (
            2
            * torch.kron(
                p["lokr_w1"][:, :, None, None],
                tucker(p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"]),
            )
        ),
    ),
    "full": (LINEAR, {"diff": R(6, 5)}, lambda p: p["diff"]),
    "full of a convolution": (CONV, {"diff": R(6, 5, 3, 3)}, lambda p: p["diff"]),
    "locon with a core": (
        CONV,
        {
            "lora_down.weight": R(2, 5, 1, 1),
            "lora_up.weight": R(6, 2, 1, 1),
            "lora_mid.weight": R(2, 2, 3, 3),
            "alpha": 1.0,
        },
        lambda p: (
            0.5
            * tucker(
                p["lora_mid.weight"],
                p["lora_up.weight"].flatten(1).T,
                p["lora_down.weight"].flatten(1),
            )
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_lycoris_by_its_formulas(case: str) -> None:
    name, given, formula = CASES[case]
    tensors = parts(name, **given)
    want = formula({part: torch.as_tensor(t) for part, t in given.items()})
    update = only(tensors)
    assert update.shape == want.shape
    assert torch.allclose(delta(update), want, atol=1e-5)
    assert torch.allclose(delta(update.factors()), want, atol=1e-5), "the same as a LoRA"

    found = read(tensors).adapter
    again = only(kohya.dump(found, "sd")[0])
    assert torch.allclose(delta(again), want, atol=1e-5), "kohya's file keeps its form"
    same_names = {k for k in kohya.dump(found, "sd")[0] if not k.endswith(".alpha")}
    assert case == "locon with a core" or same_names == {k for k in tensors if ".alpha" not in k}
    assert torch.allclose(delta(only(*diffusers_layout.dump(found))), want, atol=1e-5)


def test_lycoris_with_a_magnitude() -> None:
    weight, magnitude = torch.randn(6, 5), torch.rand(6, 1) + 1
    update = only(parts(LINEAR, **loha(2, 5), alpha=2.0, dora_scale=magnitude))
    changed = weight + update.change()
    want = magnitude * changed / changed.norm(dim=1, keepdim=True) - weight
    assert torch.allclose(delta(update, weight), want, atol=1e-5)
    assert torch.allclose(delta(update.factors(), weight), want, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hada_w1_a": R(6, 3), "hada_w1_b": R(2, 5), "hada_w2_a": R(6, 2), "hada_w2_b": R(2, 5)},
        {**loha(2, 5), "hada_t1": R(2, 2, 3, 3)},
        {"lokr_w1": R(2, 3)},
        {"lokr_w1": R(2, 3), "lokr_w2_a": R(2, 3)},
        {"lokr_w1": R(2), "lokr_w2": R(2, 3)},
        {"lora_down.weight": R(2, 5), "lora_up.weight": R(6, 2), "lora_mid.weight": R(2, 2)},
        {"diff": R(4)},
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(wrong: dict[str, Tensor]) -> None:
    with pytest.raises(Damaged, match=LINEAR):
        read(parts(LINEAR, **wrong))


# ---- other names


def test_old_diffusers_names() -> None:
    down, up = torch.randn(2, 5), torch.randn(6, 2)
    block = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    for start in ("unet.", ""):
        name = f"{start}{block}.processor.to_out_lora"
        update = read({f"{name}.down.weight": down, f"{name}.up.weight": up}).adapter["unet"]
        assert list(update) == [f"{block}.to_out.0"]
        assert torch.allclose(delta(update[f"{block}.to_out.0"]), up @ down, atol=1e-6)
    layer = "text_model.encoder.layers.0.self_attn"
    name = f"text_encoder.{layer}.to_q_lora"
    found = read({f"{name}.down.weight": down, f"{name}.up.weight": up}).adapter
    assert list(found["text_encoder"]) == [f"{layer}.q_proj"]
    name = f"unet.{block}.to_q"
    alpha = {f"{name}.alpha": torch.tensor(1.0)}
    named = {f"{name}.lora_A.default.weight": down, f"{name}.lora_B.default.weight": up}
    assert torch.allclose(delta(only({**named, **alpha})), 0.5 * up @ down, atol=1e-6)


def test_other_prefixes_of_kohya_names() -> None:
    mine = {"unet": adapter("sd1", 1.0)["unet"]}
    tensors = kohya.dump(mine, "sd")[0].items()
    same(mine, read({k.replace("lora_unet", "lycoris"): t for k, t in tensors}).adapter)
    name = "lora_transformer_transformer_blocks_3_attn_add_k_proj"
    found = read(parts(name, **{"lora_down.weight": R(2, 5), "lora_up.weight": R(6, 2)})).adapter
    assert list(found["transformer"]) == ["transformer_blocks.3.attn.add_k_proj"]
    name = "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0"
    found = read(parts(name, **{"lora_down.weight": R(2, 5), "lora_up.weight": R(6, 2)})).adapter
    assert list(found["text_encoder_3"]) == ["encoder.block.0.layer.1.DenseReluDense.wi_0"]


def test_flattened_factors_of_a_convolution() -> None:
    down, up = torch.randn(2, 5, 3, 3), torch.randn(6, 2)
    update = only(parts(CONV, **{"lora_down.weight": down, "lora_up.weight": up}))
    assert update.shape == (6, 5, 3, 3)


def test_sd3_modulations_change_places() -> None:
    """norm_out: scale and shift in diffusers are shift and scale in Stability's code."""
    mine: Any = adapter("sd3", 0.7, dora=True)
    tensors, _ = kohya.dump(mine, "sd3")
    up = mine["transformer"]["norm_out.linear"].up
    swapped = tensors["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"]
    assert torch.equal(torch.cat(up.chunk(2)[::-1]), swapped)
    first = tensors["lora_unet_joint_blocks_0_context_block_adaLN_modulation_1.lora_up.weight"]
    block = "transformer_blocks.0.norm1_context.linear"
    assert torch.equal(first, mine["transformer"][block].up), "only in the last block"


def test_words_bundled_in_a_lora_file() -> None:
    tensors, _ = kohya.dump(adapter("sd1", 1.0), "sd")
    bundled = {
        "bundle_emb.rex.string_to_param.*": torch.randn(2, 12),
        "bundle_emb.pip.clip_l": torch.randn(1, 12),
        "bundle_emb.pip.clip_g": torch.randn(1, 20),
    }
    found = read(tensors | bundled)
    assert {w: sorted(v) for w, v in found.words.items()} == {
        "rex": ["text_encoder"],
        "pip": ["text_encoder", "text_encoder_2"],
    }
    same(found.adapter, adapter("sd1", 1.0))


# ---- cloneofsimo/lora


def numbered(model: torch.nn.Module, ancestors: set[str]) -> list[str]:
    """_find_modules_v2 of lora_diffusion/lora.py: linear layers below modules of some classes."""
    found = []
    for path, module in model.named_modules():
        if type(module).__name__ in ancestors:
            inner = ((f"{path}.{n}", m) for n, m in module.named_modules())
            found += [n for n, m in inner if isinstance(m, torch.nn.Linear)]
    return found


def test_cloneofsimo_counts_modules_as_their_code_does() -> None:
    model = unet(
        block_out_channels=(8, 12, 16, 16),
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    )
    want: Any = {"unet": {}, "text_encoder": {}}
    tensors = {}
    classes = {"unet": (model, {"Attention", "GEGLU"}), "text_encoder": (clip(), {"CLIPAttention"})}
    for component, (part, ancestors) in classes.items():
        for n, path in enumerate(numbered(part, ancestors)):
            layer: Any = part.get_submodule(path)
            down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
            tensors |= {f"{component}:{n}:down": down, f"{component}:{n}:up": up}
            path = path.replace("encoder.layers", "text_model.encoder.layers", 1)
            want[component][path.replace("text_model.text_model", "text_model")] = up @ down
    words = {"<s1>": torch.randn(12), "<s2>": torch.randn(12)}
    found = read({**tensors, **words}, {"unet": '["GEGLU"]'})
    assert found.layout == "cloneofsimo"
    for component, modules in want.items():
        assert found.adapter[component].keys() == modules.keys()
        for module, change in modules.items():
            assert torch.allclose(delta(found.adapter[component][module]), change, atol=1e-5)
    assert {w: tuple(v["text_encoder"].shape) for w, v in found.words.items()} == {
        "<s1>": (1, 12),
        "<s2>": (1, 12),
    }


def old_order() -> list[tuple[int, int]]:
    """(out, in) by number in example_loras/lora_disney.safetensors: GEGLU between attentions."""
    shapes = []
    for width, blocks in ((320, 2), (640, 2), (1280, 2), (1280, 3), (640, 3), (320, 3), (1280, 1)):
        own, other = (width, width), (width, 768)
        shapes += [*[own] * 4, (8 * width, width), own, other, other, own] * blocks
    return shapes


def test_cloneofsimo_files_of_sd_1() -> None:
    tensors = {}
    for n, (out, width) in enumerate(old_order()):
        tensors |= {f"unet:{n}:up": torch.ones(out, 1), f"unet:{n}:down": torch.ones(1, width)}
    found = read(tensors).adapter["unet"]
    assert len(found) == 144
    block = "mid_block.attentions.0.transformer_blocks.0"
    assert found[f"{block}.ff.net.0.proj"].shape == (10240, 1280)
    assert found[f"{block}.attn2.to_k"].shape == (1280, 768)
    for missing in (dict(list(tensors.items())[2:]), dict(list(tensors.items())[:-2])):
        with pytest.raises(Damaged, match="'unet'"):
            read(missing)


# ---- what is no adapter


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({}, "no tensor"),
        ({"model.diffusion_model.out.2.weight": R(4, 8, 3, 3)}, "no adapter"),
        ({f"{LINEAR}.lora_up.weight": R(4, 2), "stranger.weight": R(2, 2)}, "'stranger'"),
        ({f"{LINEAR}.lora_up.weight": R(4, 2), "bundle_emb.x.oops": R(2, 2, 2)}, "bundle_emb.x"),
        ({"<rex>": R(2, 12), "other": R(2, 2, 2)}, "no adapter"),
        ({"clip_l": R(1, 12), "bundle_emb.": R(1, 12)}, "bundle_emb"),
    ],
)
def test_strangers_are_named(tensors: dict[str, Tensor], why: str) -> None:
    with pytest.raises(Damaged, match=why):
        read(tensors)


def test_pickles_are_refused_whatever_their_name(tmp_path: Path) -> None:
    for name in ("old.pt", "learned_embeds.bin", "rex.safetensors"):
        torch.save({"*": torch.ones(1, 12)}, tmp_path / name)
        with pytest.raises(Unsafe, match="pickle"):
            adapters.read_adapter(tmp_path / name)
    with pytest.raises(NotFound, match=r"no adapter_model\.safetensors"):
        adapters.read_adapter(tmp_path)


def test_peft_folders_that_are_no_lora(tmp_path: Path) -> None:
    name = "base_model.model.down_blocks.0.attentions.0.proj_in"
    tensors = {f"{name}.lora_A.weight": R(2, 5), f"{name}.lora_B.weight": R(6, 2)}
    write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
    assert list(adapters.read_adapter(tmp_path).adapter) == ["unet"]
    for text in ("", "[]", '{"peft_type": "LOHA"}'):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(Damaged, match="adapter_config"):
            adapters.read_adapter(tmp_path)
