"""What kohya's files call the transformers of Stable Diffusion 3 and FLUX: by their original code.

    joint_blocks.0.x_block.attn.qkv            to_q, to_k and to_v of diffusers, one below the other
    joint_blocks.0.context_block.attn.qkv      add_q_proj, add_k_proj and add_v_proj
    joint_blocks.0.x_block.adaLN_modulation.1  norm1.linear; of a last block's context, and of the
                                               final layer, shift and scale are the other way round
    double_blocks.0.img_attn.qkv               FLUX has q, k and v in one matrix too, and a single
    single_blocks.0.linear1                    block its MLP's first layer as well

The maps are those of diffusers' convert_sd3_transformer_checkpoint_to_diffusers and
convert_flux_transformer_checkpoint_to_diffusers (0.42.1).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dreamtune.errors import Damaged, Usage
from dreamtune.formats.lora import LoraWeights, Update

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Block:
    """One kind of transformer block: what diffusers calls it and its modules, and what others do.

    fused: their matrix to the modules whose weights are stacked in it, each with its share of rows.
    """

    ours: str
    theirs: str
    plain: Mapping[str, str]
    fused: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Transformer:
    """One architecture: its blocks, and the modules outside them."""

    name: str
    blocks: Sequence[Block]
    top: Mapping[str, str]


def _thirds(*modules: str) -> dict[str, int]:
    return dict.fromkeys(modules, 1)


SD3 = Transformer(
    "sd3",
    (
        Block(
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
                "norm1.linear": "x_block.adaLN_modulation.1",
                "norm1_context.linear": "context_block.adaLN_modulation.1",
            },
            {
                "x_block.attn.qkv": _thirds("attn.to_q", "attn.to_k", "attn.to_v"),
                "x_block.attn2.qkv": _thirds("attn2.to_q", "attn2.to_k", "attn2.to_v"),
                "context_block.attn.qkv": _thirds(
                    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"
                ),
            },
        ),
    ),
    {
        "pos_embed.proj": "x_embedder.proj",
        "context_embedder": "context_embedder",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
)
FLUX = Transformer(
    "flux",
    (
        Block(
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
        Block(
            "single_transformer_blocks",
            "single_blocks",
            {"proj_out": "linear2", "norm.linear": "modulation.lin"},
            {"linear1": {**_thirds("attn.to_q", "attn.to_k", "attn.to_v"), "proj_mlp": 4}},
        ),
    ),
    {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
)
SWAPPED = ("norm1_context.linear", "norm_out.linear")  # where shift and scale may be exchanged
Arrange = Callable[[LoraWeights], list[LoraWeights | None]]


def dump(updates: Mapping[str, Update], model: Transformer) -> dict[str, Update]:
    """Updates by the original paths, of updates by diffusers'. Usage for a path without a name."""
    renamed: dict[str, Update] = {}
    fused: dict[tuple[str, str, str], dict[str, LoraWeights]] = defaultdict(dict)
    known = {block.ours: block for block in model.blocks}
    for path, update in updates.items():
        prefix, number, module = (*path.split(".", 2), "", "")[:3]
        block = known.get(prefix)
        matrices = block.fused.items() if block else ()
        matrix = next((name for name, parts in matrices if module in parts), None)
        if path.endswith(SWAPPED):
            update = swap(update.factors())
        if block and module in block.plain:
            renamed[f"{block.theirs}.{number}.{block.plain[module]}"] = update
        elif matrix:
            fused[prefix, number, matrix][module] = update.factors()
        elif path in model.top:
            renamed[model.top[path]] = update
        else:
            why = f"the kohya layout {model.name!r} has no name for the module {path!r}"
            raise Usage(why, fix="use --to diffusers")
    for (prefix, number, matrix), parts in fused.items():
        name = f"{known[prefix].theirs}.{number}.{matrix}"
        renamed[name] = fuse(name, parts, known[prefix].fused[matrix])
    return renamed


def modules(name: str, path: str) -> tuple[dict[str, int], Arrange | None] | None:
    """diffusers' module(s) at the original `path` with their shares, and how each update is made.

    None when the path is of neither architecture; `name` is for messages.
    """
    for model in (SD3, FLUX):
        for ours, theirs in model.top.items():
            if path == theirs:
                return _plain(ours)
        for block in model.blocks:
            prefix, number, module = (*path.split(".", 2), "", "")[:3]
            if prefix != block.theirs:
                continue
            if shares := block.fused.get(module):
                found = {f"{block.ours}.{number}.{part}": n for part, n in shares.items()}
                return found, functools.partial(split, name, shares=shares)
            for ours, theirs in block.plain.items():
                if module == theirs:
                    return _plain(f"{block.ours}.{number}.{ours}")
    return None


def _plain(path: str) -> tuple[dict[str, int], Arrange | None]:
    return {path: 1}, (lambda update: [swap(update)]) if path.endswith(SWAPPED) else None


def swap(update: LoraWeights) -> LoraWeights:
    """Shift and scale exchanged, where these two are all: AdaLayerNormContinuous, (2 in, in)."""
    if update.shape[0] != 2 * update.shape[1]:
        return update
    magnitude = update.magnitude
    if magnitude is not None and magnitude.shape[0] > 1:
        magnitude = _exchange(magnitude)
    return replace(update, up=_exchange(update.up), magnitude=magnitude)


def _exchange(rows: Tensor) -> Tensor:
    return rows.roll(rows.shape[0] // 2, 0)


def fuse(name: str, parts: Mapping[str, LoraWeights], shares: Mapping[str, int]) -> LoraWeights:
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
    for i, (module, share) in enumerate(shares.items()):
        if part := parts.get(module):
            down[i, : part.rank] = part.down
            # Exactly 1 unless the parts were trained at different strengths.
            change = part.up * (part.alpha / part.rank / scale)
            up[row : row + share * unit, i, : part.rank] = change
        row += share * unit
    magnitude = _stacked(name, parts, shares)
    return LoraWeights(
        down.flatten(0, 1), up.flatten(1), n * rank * scale, magnitude, first.base_norm
    )


def _stacked(
    name: str, parts: Mapping[str, LoraWeights], shares: Mapping[str, int]
) -> Tensor | None:
    """The magnitudes of all parts, (rows, 1): each has one, or none."""
    import torch

    found = [parts[m].magnitude for m in shares if m in parts]
    given = [m for m in found if m is not None and m.shape[1] == 1]
    if not given and all(m is None for m in found):
        return None
    if len(given) < len(shares):
        raise Usage(
            f"the kohya layout cannot hold the DoRA of {name}",
            why=f"{', '.join(shares)} are one matrix, and not each has magnitudes of its outputs",
            fix="train all of them, or use --to diffusers",
        )
    return torch.cat(given)


def split(name: str, fused: LoraWeights, shares: Mapping[str, int]) -> list[LoraWeights | None]:
    """The LoRAs of the stacked matrices in one of the whole; None for a part that is only zeros.

    Undoes `fuse` exactly. A LoRA trained on the whole gives several with the same down.
    """
    rows, n, total = fused.shape[0], len(shares), sum(shares.values())
    if rows % total or len(fused.shape) != 2:
        raise Damaged(f"{name} has {rows} rows, which are not {', '.join(shares)}")
    if fused.magnitude is not None and fused.magnitude.shape[0] == 1:
        raise Damaged(f"{name} has a magnitude for each input, which its parts do not share")
    sizes = [rows // total * share for share in shares.values()]
    ups = fused.up.split(sizes)
    magnitudes: Sequence[Tensor | None] = [None] * n
    if fused.magnitude is not None:
        magnitudes = [m.clone() for m in fused.magnitude.split(sizes)]
    blocks = [up.unflatten(1, (n, -1)) for up in ups] if fused.rank % n == 0 else []
    if not blocks or any(blocks[i][:, j].any() for i in range(n) for j in range(n) if i != j):
        return [
            replace(fused, down=fused.down.clone(), up=up.clone(), magnitude=m)
            for up, m in zip(ups, magnitudes, strict=True)
        ]
    downs, alpha = fused.down.chunk(n), fused.alpha / n
    pieces = [
        LoraWeights(downs[i].clone(), blocks[i][:, i].clone(), alpha, m, fused.base_norm)
        for i, m in enumerate(magnitudes)
    ]
    return [p if p.down.any() or p.up.any() or p.magnitude is not None else None for p in pieces]
