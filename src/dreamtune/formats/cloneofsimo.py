"""LoRA files of cloneofsimo/lora, the first of their kind: modules by number, and embeddings.

    unet:0:down, unet:0:up              (r, in) and (out, r), in the order of the UNet's modules
    text_encoder:0:down, ...
    <s1>                                the vector of a word

There is no alpha: the scale is 1 (lora_diffusion/lora.py at d84074b). A number means the n-th
linear layer of all CrossAttention (or Attention) and GEGLU modules, or of all CLIPAttention
modules. Where in a block GEGLU stands depends on the version of diffusers, so it is seen by shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from dreamtune.errors import Damaged
from dreamtune.formats.entries import Entry, group
from dreamtune.formats.lora import Shape

KEY = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
PARTS = {"up": "lora_up.weight", "down": "lora_down.weight"}
CLIP = ("k_proj", "v_proj", "q_proj", "out_proj")  # as CLIPAttention registers them
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
GEGLU = "ff.net.0.proj"
# SD 1.x and 2.x: two attentions in each of three levels, three on the way up, one in the middle.
BLOCKS = (
    *(f"down_blocks.{level}.attentions.{i}" for level in range(3) for i in range(2)),
    *(f"up_blocks.{level}.attentions.{i}" for level in range(1, 4) for i in range(3)),
    "mid_block.attentions.0",  # registered last
)


def entries(shapes: Mapping[str, Shape]) -> list[Entry]:
    """What the numbered keys mean. Damaged when they are not those of SD 1.x or 2.x."""
    matches = {key: KEY.fullmatch(key) for key in shapes}
    numbered = group(((m[1], int(m[2])), PARTS[m[3]], k) for k, m in matches.items() if m)
    found = []
    for component in ("unet", "text_encoder"):
        parts = [numbered[at] for at in sorted(numbered) if at[0] == component]
        if [n for c, n in sorted(numbered) if c == component] != list(range(len(parts))):
            raise Damaged(f"the numbers of {component!r} have gaps")
        changes = [_change(p, shapes) for p in parts]
        modules = _unet(changes) if component == "unet" else _clip(len(parts))
        if len(modules) != len(parts):
            why = f"{len(parts)} is not the number of linear layers that SD 1.x or 2.x has there"
            raise Damaged(f"the modules of {component!r} cannot be told", why=why)
        names = (f"{component}:{n}" for n in range(len(parts)))
        found += [
            Entry(name, component, {module: 1}, p)
            for name, module, p in zip(names, modules, parts, strict=True)
        ]
    return found


def _change(parts: Mapping[str, str], shapes: Mapping[str, Shape]) -> Shape:
    """(out, in) of one number; () when a matrix is missing, which is refused later."""
    up, down = (shapes.get(parts.get(part, ""), ()) for part in PARTS.values())
    return (up[0], down[1]) if len(up) == len(down) == 2 else ()


def _unet(changes: Sequence[Shape]) -> list[str]:
    """The module of each number; none when no order of modules fits the shapes."""
    first, second = ([f"{attn}.{name}" for name in ATTENTION] for attn in ("attn1", "attn2"))
    for order in ([*first, GEGLU, *second], [*first, *second, GEGLU], [*first, *second]):
        modules = [f"{b}.transformer_blocks.0.{module}" for b in BLOCKS for module in order]
        # GEGLU's output is twice the hidden size, which is four times the width.
        if len(modules) == len(changes) and all(
            (change[0] == 8 * change[1]) == module.endswith(GEGLU)
            for module, change in zip(modules, changes, strict=True)
            if change
        ):
            return modules
    return []


def _clip(count: int) -> list[str]:
    layers = range(count // len(CLIP))
    return [f"text_model.encoder.layers.{n}.self_attn.{name}" for n in layers for name in CLIP]


def words(shapes: Mapping[str, Shape]) -> Iterator[str]:
    """The keys that are vectors of words."""
    yield from (key for key in shapes if not KEY.fullmatch(key))
