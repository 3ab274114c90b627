"""LoRA files as kohya-ss/sd-scripts names them: what A1111, ComfyUI, InvokeAI and SwarmUI read.

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight   (r, in) or (r, in, kh, kw)
                                                .lora_up.weight     (out, r) or (out, r, 1, 1)
                                                .alpha              float32 scalar

delta W = alpha / r * up @ down. The dots of a module path become underscores, so reading needs the
words that paths are made of (WORDS). Every family has its own names for the denoiser (sd-scripts at
48d368fa, networks/lora.py and lora_sd3.py):

    sd     diffusers' module paths; text encoder "lora_te"
    sdxl   the blocks of Stability's sgm code ("input_blocks_4_1_..."); "lora_te1", "lora_te2"
    sd3    the blocks of Stability's MMDiT ("joint_blocks_0_x_block_..."), q, k and v in one matrix;
           "lora_te1", "lora_te2". AdaLN layers have no map yet and are refused.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
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
    """The adapter in the tensors of a kohya file; sd, sdxl (either block naming) or sd3.

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
    if path.startswith("joint_blocks."):
        return "transformer", _from_mmdit(name, path, weights)
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


# ---- sd3: diffusers' blocks and MMDiT's

MMDIT = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
MMDIT_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
MMDIT_PLACE = {
    part: (fused, i) for fused, parts in MMDIT_FUSED.items() for i, part in enumerate(parts)
}


def _mmdit(modules: Modules, _: int) -> Modules:
    renamed: Modules = {}
    fused: dict[str, list[LoraWeights | None]] = {}
    for path, weights in modules.items():
        block = re.match(r"transformer_blocks\.(\d+)\.", path)
        module = path[block.end() :] if block else path
        if block and module in MMDIT:
            renamed[f"joint_blocks.{block[1]}.{MMDIT[module]}"] = weights
        elif block and module in MMDIT_PLACE:
            name, place = MMDIT_PLACE[module]
            fused.setdefault(f"joint_blocks.{block[1]}.{name}", [None] * 3)[place] = weights
        else:
            raise Usage(f"the kohya layout 'sd3' has no name for the module {path!r}")
    return renamed | {name: _fuse(parts) for name, parts in fused.items()}


def _from_mmdit(name: str, path: str, weights: LoraWeights) -> Modules:
    _, number, module = (*path.split(".", 2), "")[:3]
    block = f"transformer_blocks.{number}"
    if module in MMDIT_FUSED:
        if weights.up.shape[0] % 3:
            raise Damaged(f"{name} has {weights.up.shape[0]} rows, which are not q, k and v")
        parts = zip(MMDIT_FUSED[module], _split(weights), strict=True)
        return {f"{block}.{part}": piece for part, piece in parts if piece is not None}
    for ours, theirs in MMDIT.items():
        if module == theirs:
            return {f"{block}.{ours}": weights}
    raise Damaged(f"the LoRA key {name!r} names no known module")


def _fuse(parts: list[LoraWeights | None]) -> LoraWeights:
    """LoRAs of q, k and v as one of the fused matrix: downs stacked, ups on the block diagonal.

    down (3r, in), up (3 out, 3r), alpha 3a, so that alpha / rank stays a / r. A part that was not
    trained is zeros. (sd-scripts' split_qkv leaves alpha at a, and every loader then applies a
    third of the trained strength.)
    """
    present = [part for part in parts if part is not None]
    rank = max(part.rank for part in present)
    scale = present[0].alpha / present[0].rank
    width, out = present[0].down.shape[1], present[0].up.shape[0]
    down = present[0].down.new_zeros(3, rank, width)
    up = present[0].up.new_zeros(3, out, 3, rank)
    for i, part in enumerate(parts):
        if part is not None:
            down[i, : part.rank] = part.down
            # Exactly 1 unless the parts were trained at different strengths.
            up[i, :, i, : part.rank] = part.up * (part.alpha / part.rank / scale)
    alpha = 3 * rank * scale
    return LoraWeights(down.reshape(3 * rank, width), up.reshape(3 * out, 3 * rank), alpha)


def _split(fused: LoraWeights) -> list[LoraWeights | None]:
    """The LoRAs of q, k and v in one of the fused matrix; None for a part that is zeros throughout.

    Undoes `_fuse` exactly. A LoRA trained on the fused matrix gives three with the same down.
    """
    rank = fused.rank
    ups = fused.up.chunk(3)  # 3 x (out, R)
    diagonal = rank % 3 == 0 and all(
        not ups[i].unflatten(1, (3, -1))[:, j].any() for i in range(3) for j in range(3) if i != j
    )
    if not diagonal:
        return [LoraWeights(fused.down.clone(), up.clone(), fused.alpha) for up in ups]
    downs = fused.down.chunk(3)
    pieces = [
        LoraWeights(downs[i].clone(), ups[i].unflatten(1, (3, -1))[:, i].clone(), fused.alpha / 3)
        for i in range(3)
    ]
    return [piece if piece.down.any() or piece.up.any() else None for piece in pieces]


LAYOUTS = {
    "sd": Layout("unet", {"text_encoder": "lora_te"}, lambda modules, _: modules),
    "sdxl": Layout("unet", {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}, _sdxl),
    "sd3": Layout(
        "transformer", {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}, _mmdit
    ),
}
