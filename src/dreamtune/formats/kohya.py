"""LoRA files as kohya-ss/sd-scripts names them: what A1111, ComfyUI, InvokeAI and SwarmUI read.

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight   (r, in) or (r, in, kh, kw)
                                                .lora_up.weight     (out, r) or (out, r, 1, 1)
                                                .alpha              float32 scalar

delta W = alpha / r * up @ down. The dots of a module path become underscores, so reading needs the
words that paths are made of (WORDS). Every family has its own names for the denoiser (sd-scripts at
48d368fa, networks/lora.py, lora_sd3.py and lora_flux.py):

    sd     diffusers' module paths; text encoder "lora_te"
    sdxl   the blocks of Stability's sgm code ("input_blocks_4_1_..."); "lora_te1", "lora_te2"
    sd3    the blocks of Stability's MMDiT ("joint_blocks_0_x_block_..."), q, k and v in one matrix;
           "lora_te1", "lora_te2". AdaLN layers have no map yet and are refused.
    flux   the blocks of Black Forest Labs' code ("double_blocks_0_img_attn_qkv"); a single block
           has q, k, v and its MLP's first layer in one matrix, "linear1"; CLIP is "lora_te1"
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from dreamtune.errors import Damaged, Usage, suggest
from dreamtune.formats.lora import Adapter, LoraWeights, canonical, checked

if TYPE_CHECKING:
    from torch import Tensor

Modules = dict[str, LoraWeights]


# ---- one layout per family


@dataclass(frozen=True)
class Layout:
    """How one family is named: the denoiser's component, the text encoders' prefixes, the paths."""

    denoiser: str
    text: dict[str, str]
    rename: Callable[[Modules, int], Modules]


def dump(adapter: Adapter, layout: str, layers_per_block: int = 2) -> dict[str, Tensor]:
    """The tensors of a kohya file.

    `layout`: a name in LAYOUTS. `layers_per_block`: the UNet's, which sgm's numbering depends on;
    2 in all released models.
    """
    import torch

    if layout not in LAYOUTS:
        raise Usage(
            f"no kohya layout {layout!r}",
            why=f"there are {', '.join(LAYOUTS)}",
            fix=suggest(layout, LAYOUTS),
        )
    form = LAYOUTS[layout]
    prefixes = {form.denoiser: "lora_unet", **form.text}
    tensors = {}
    for component, modules in adapter.items():
        if component not in prefixes:
            raise Usage(f"the kohya layout {layout!r} has no name for the component {component!r}")
        renamed = form.rename(modules, layers_per_block) if component == form.denoiser else modules
        for module, weights in renamed.items():
            name = f"{prefixes[component]}_{module.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"] = weights.down.contiguous()
            tensors[f"{name}.lora_up.weight"] = weights.up.contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(weights.alpha, dtype=torch.float32)
    return tensors


def parse(tensors: Mapping[str, Tensor], layers_per_block: int = 2) -> Adapter:
    """The adapter in the tensors of a kohya file; sd, sdxl (either block naming), sd3 or flux.

    A missing alpha means scale 1, as in A1111 and ComfyUI. Damaged names what has no meaning here.
    """
    grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, _, part = key.partition(".")
        grouped[name][part] = tensor
    adapter: Adapter = defaultdict(dict)
    for name, parts in grouped.items():
        if not {"lora_down.weight", "lora_up.weight"} <= parts.keys() <= PARTS:
            raise Damaged(f"{name} is no LoRA", why=f"it has {', '.join(sorted(parts))}")
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        alpha = _scalar(parts["alpha"]) if "alpha" in parts else None
        weights = checked(name, down, up, alpha)
        component, modules = _locate(name, weights, layers_per_block)
        if modules.keys() & adapter[component].keys():
            raise Damaged(f"{name} is a second LoRA for {', '.join(modules)}")
        adapter[component] |= modules
    return dict(adapter)


PARTS = {"lora_down.weight", "lora_up.weight", "alpha"}
COMPONENTS = {
    "lora_unet": "unet",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
}


def _scalar(alpha: Tensor) -> float:
    return float(alpha) if alpha.numel() == 1 else math.nan


def _locate(name: str, weights: LoraWeights, layers_per_block: int) -> tuple[str, Modules]:
    """Component and module(s) of one kohya name."""
    prefix = next((p for p in COMPONENTS if name.startswith(f"{p}_")), None)
    if prefix is None:
        raise Damaged(f"the LoRA key {name!r} names no known component")
    path = _dotted(name.removeprefix(f"{prefix}_"))
    if path is None:
        raise Damaged(f"the LoRA key {name!r} names no known module")
    for blocks in (*SD3, *FLUX):
        if path.startswith(f"{blocks.theirs}."):
            return "transformer", _to_diffusers(blocks, name, path, weights)
    if path.startswith(SGM):
        path = _substitute(path, {new: old for old, new in _sgm_names(layers_per_block).items()})
    return COMPONENTS[prefix], {canonical(COMPONENTS[prefix], path): weights}


# ---- underscores back to dots

# Every word that a module path of these models is made of.
WORDS = (
    "down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers transformer_blocks "
    "attn1 attn2 to_q to_k to_v to_out ff net proj proj_in proj_out "
    "conv conv1 conv2 conv_in conv_out conv_shortcut time_emb_proj "
    "time_embedding add_embedding linear_1 linear_2 "
    "input_blocks middle_block output_blocks in_layers emb_layers out_layers skip_connection op "
    "time_embed label_emb out "
    "joint_blocks x_block context_block attn qkv mlp fc1 fc2 "
    "double_blocks single_blocks img_attn txt_attn img_mlp txt_mlp img_mod txt_mod "
    "linear1 linear2 modulation lin "
    "text_model encoder layers self_attn q_proj k_proj v_proj out_proj text_projection "
)
# The longest word wins: `proj_in` is one word, `net_0_proj` are three.
WORD = re.compile(rf"({'|'.join(sorted(WORDS.split(), key=len, reverse=True))}|\d+)(?:_|$)")


def _dotted(name: str) -> str | None:
    """`mid_block_attentions_0_proj_in` -> `mid_block.attentions.0.proj_in`; None if unknown."""
    words, at = [], 0
    while at < len(name):
        word = WORD.match(name, at)
        if word is None:
            return None
        words.append(word[1])
        at = word.end()
    return ".".join(words)


# ---- sdxl: diffusers' blocks and sgm's

SGM = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
SGM_LEVELS = 4  # SDXL has three
SGM_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
SGM_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


@cache
def _sgm_names(layers_per_block: int) -> dict[str, str]:
    """{diffusers' path: sgm's path} of every block of an SDXL-shaped UNet.

    sgm counts conv_in, resnets and downsamplers of all levels in one list, the way up in another.
    """
    resnets, names = {}, dict(SGM_TOP)
    for level in range(SGM_LEVELS):
        first_in, first_out = 1 + (layers_per_block + 1) * level, (layers_per_block + 1) * level
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        for i in range(layers_per_block):
            resnets[f"{down}.resnets.{i}"] = f"input_blocks.{first_in + i}.0"
            names[f"{down}.attentions.{i}"] = f"input_blocks.{first_in + i}.1"
        names[f"{down}.downsamplers.0.conv"] = f"input_blocks.{first_in + layers_per_block}.0.op"
        for i in range(layers_per_block + 1):
            resnets[f"{up}.resnets.{i}"] = f"output_blocks.{first_out + i}.0"
            names[f"{up}.attentions.{i}"] = f"output_blocks.{first_out + i}.1"
        # Place 2, after resnet and attention: the levels of SDXL that upsample have attention.
        names[f"{up}.upsamplers.0.conv"] = f"output_blocks.{first_out + layers_per_block}.2.conv"
    resnets |= {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    names["mid_block.attentions.0"] = "middle_block.1"
    for block, new in resnets.items():
        names |= {f"{block}.{a}": f"{new}.{b}" for a, b in SGM_RESNET.items()}
    return names


def _substitute(path: str, names: Mapping[str, str]) -> str:
    """`path` with its longest known beginning replaced."""
    words = path.split(".")
    for n in range(len(words), 0, -1):
        known = names.get(".".join(words[:n]))
        if known is not None:
            return ".".join([known, *words[n:]])
    raise Damaged(f"the module {path!r} has no other name in this layout")


def _sdxl(modules: Modules, layers_per_block: int) -> Modules:
    names = _sgm_names(layers_per_block)
    return {_substitute(path, names): weights for path, weights in modules.items()}


# ---- sd3 and flux: diffusers' blocks and those of the original code, with fused matrices


@dataclass(frozen=True)
class Blocks:
    """One kind of transformer block: what diffusers calls it and its modules, and what others do.

    fused: their matrix to the modules whose weights are stacked in it, each with its share of rows.
    """

    ours: str
    theirs: str
    plain: dict[str, str]
    fused: dict[str, dict[str, int]]


def _thirds(*modules: str) -> dict[str, int]:
    return dict.fromkeys(modules, 1)


SD3 = (
    Blocks(
        "transformer_blocks",
        "joint_blocks",
        {
            "attn.to_out.0": "x_block.attn.proj",
            "attn2.to_out.0": "x_block.attn2.proj",
            "attn.to_add_out": "context_block.attn.proj",
            "ff.net.0.proj": "x_block.mlp.fc1",
            "ff.net.2": "x_block.mlp.fc2",
            "ff_context.net.0.proj": "context_block.mlp.fc1",
            "ff_context.net.2": "context_block.mlp.fc2",
        },
        {
            "x_block.attn.qkv": _thirds("attn.to_q", "attn.to_k", "attn.to_v"),
            "x_block.attn2.qkv": _thirds("attn2.to_q", "attn2.to_k", "attn2.to_v"),
            "context_block.attn.qkv": _thirds(
                "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"
            ),
        },
    ),
)
FLUX = (
    Blocks(
        "transformer_blocks",
        "double_blocks",
        {
            "attn.to_out.0": "img_attn.proj",
            "attn.to_add_out": "txt_attn.proj",
            "ff.net.0.proj": "img_mlp.0",
            "ff.net.2": "img_mlp.2",
            "ff_context.net.0.proj": "txt_mlp.0",
            "ff_context.net.2": "txt_mlp.2",
            "norm1.linear": "img_mod.lin",
            "norm1_context.linear": "txt_mod.lin",
        },
        {
            "img_attn.qkv": _thirds("attn.to_q", "attn.to_k", "attn.to_v"),
            "txt_attn.qkv": _thirds("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        },
    ),
    Blocks(
        "single_transformer_blocks",
        "single_blocks",
        {"proj_out": "linear2", "norm.linear": "modulation.lin"},
        {"linear1": {**_thirds("attn.to_q", "attn.to_k", "attn.to_v"), "proj_mlp": 4}},
    ),
)


def _to_original(kinds: Sequence[Blocks], layout: str, modules: Modules) -> Modules:
    """Modules under diffusers' paths to the original code's."""
    renamed: Modules = {}
    fused: dict[tuple[str, str, str], dict[str, LoraWeights]] = defaultdict(dict)
    known = {blocks.ours: blocks for blocks in kinds}
    for path, weights in modules.items():
        prefix, number, module = (*path.split(".", 2), "", "")[:3]
        blocks = known.get(prefix)
        matrices = blocks.fused.items() if blocks else ()
        matrix = next((name for name, parts in matrices if module in parts), None)
        if blocks and module in blocks.plain:
            renamed[f"{blocks.theirs}.{number}.{blocks.plain[module]}"] = weights
        elif matrix:
            fused[prefix, number, matrix][module] = weights
        else:
            raise Usage(f"the kohya layout {layout!r} has no name for the module {path!r}")
    for (prefix, number, matrix), parts in fused.items():
        blocks = known[prefix]
        renamed[f"{blocks.theirs}.{number}.{matrix}"] = _fuse(parts, blocks.fused[matrix])
    return renamed


def _to_diffusers(blocks: Blocks, name: str, path: str, weights: LoraWeights) -> Modules:
    """The module(s) under diffusers' paths of one under the original code's."""
    _, number, module = (*path.split(".", 2), "", "")[:3]
    block = f"{blocks.ours}.{number}"
    if module in blocks.fused:
        pieces = _split(name, weights, blocks.fused[module])
        return {f"{block}.{part}": piece for part, piece in pieces.items()}
    for ours, theirs in blocks.plain.items():
        if module == theirs:
            return {f"{block}.{ours}": weights}
    raise Damaged(f"the LoRA key {name!r} names no known module")


def _fuse(parts: Mapping[str, LoraWeights], shares: Mapping[str, int]) -> LoraWeights:
    """LoRAs of n stacked matrices as one of the whole: downs stacked, ups on the block diagonal.

    down (n r, in), up (rows, n r), alpha n a, so that alpha / rank stays a / r. A part that was not
    trained is zeros. (sd-scripts' split_qkv leaves alpha at a, and every loader then applies an
    n-th of the trained strength.)
    """
    first_name, first = next(iter(parts.items()))
    n, rank = len(shares), max(part.rank for part in parts.values())
    scale = first.alpha / first.rank
    unit = first.up.shape[0] // shares[first_name]
    down = first.down.new_zeros(n, rank, first.down.shape[1])
    up = first.up.new_zeros(unit * sum(shares.values()), n, rank)
    row = 0
    for i, (name, share) in enumerate(shares.items()):
        if part := parts.get(name):
            down[i, : part.rank] = part.down
            # Exactly 1 unless the parts were trained at different strengths.
            change = part.up * (part.alpha / part.rank / scale)
            up[row : row + share * unit, i, : part.rank] = change
        row += share * unit
    return LoraWeights(down.flatten(0, 1), up.flatten(1), n * rank * scale)


def _split(name: str, fused: LoraWeights, shares: Mapping[str, int]) -> Modules:
    """The LoRAs of the stacked matrices in one of the whole; none for a part that is only zeros.

    Undoes `_fuse` exactly. A LoRA trained on the whole gives several with the same down.
    """
    rows, n, total = fused.up.shape[0], len(shares), sum(shares.values())
    if rows % total:
        raise Damaged(f"{name} has {rows} rows, which are not {', '.join(shares)}")
    ups = dict(
        zip(shares, fused.up.split([rows // total * s for s in shares.values()]), strict=True)
    )
    blocks = [up.unflatten(1, (n, -1)) for up in ups.values()] if fused.rank % n == 0 else []
    if not blocks or any(blocks[i][:, j].any() for i in range(n) for j in range(n) if i != j):
        return {
            part: LoraWeights(fused.down.clone(), up.clone(), fused.alpha)
            for part, up in ups.items()
        }
    downs = fused.down.chunk(n)
    pieces = {
        part: LoraWeights(downs[i].clone(), blocks[i][:, i].clone(), fused.alpha / n)
        for i, part in enumerate(shares)
    }
    return {part: piece for part, piece in pieces.items() if piece.down.any() or piece.up.any()}


LAYOUTS = {
    "sd": Layout("unet", {"text_encoder": "lora_te"}, lambda modules, _: modules),
    "sdxl": Layout("unet", {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}, _sdxl),
    "sd3": Layout(
        "transformer",
        {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        lambda modules, _: _to_original(SD3, "sd3", modules),
    ),
    "flux": Layout(
        "transformer",
        {"text_encoder": "lora_te1"},
        lambda modules, _: _to_original(FLUX, "flux", modules),
    ),
}
