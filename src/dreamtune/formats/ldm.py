"""Stability's names (the ldm and sgm code) for the modules that diffusers names otherwise.

kohya's files of SDXL use them, and every model that is a single file. diffusers' own scripts
convert_diffusers_to_original_*.py (0.42.1) say the same for the sizes that were released; here the
numbering follows from the blocks of the UNet at hand.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Blocks:
    """What the numbering of a UNet depends on: of each level on the way down its resnets, and
    whether it has attention. SDXL's by default.
    """

    layers: tuple[int, ...] = (2, 2, 2)
    attention: tuple[bool, ...] = (False, True, True)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Blocks:
        """From a diffusers UNet's config.json."""
        kinds = config.get("down_block_types") or ()
        attention = tuple("Attn" in kind for kind in kinds) or cls.attention
        layers = config.get("layers_per_block", 2)
        even = isinstance(layers, int)
        return cls((layers,) * len(attention) if even else tuple(layers), attention)


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
UNET_STARTS = (
    *(f"{name.partition('.')[0]}." for name in UNET_TOP.values()),
    "middle_block.",
    "output_blocks.",
)


@functools.cache
def unet_names(blocks: Blocks) -> dict[str, str]:
    """{beginning of diffusers' path: that of Stability's}.

    Stability counts conv_in, resnets and downsamplers of all levels in one list, the way up in
    another.
    """
    resnets = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    names = {**UNET_TOP, "mid_block.attentions.0": "middle_block.1"}
    first = 1
    for level, layers in enumerate(blocks.layers):
        down = f"down_blocks.{level}"
        for i in range(layers):
            resnets[f"{down}.resnets.{i}"] = f"input_blocks.{first + i}.0"
            names[f"{down}.attentions.{i}"] = f"input_blocks.{first + i}.1"
        names[f"{down}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"
        first += layers + 1
    first = 0
    upward = zip(blocks.layers[::-1], blocks.attention[::-1], strict=True)
    for level, (layers, attention) in enumerate(upward):
        up = f"up_blocks.{level}"
        for i in range(layers + 1):
            resnets[f"{up}.resnets.{i}"] = f"output_blocks.{first + i}.0"
            names[f"{up}.attentions.{i}"] = f"output_blocks.{first + i}.1"
        place = 2 if attention else 1  # after resnet and attention
        names[f"{up}.upsamplers.0.conv"] = f"output_blocks.{first + layers}.{place}.conv"
        first += layers + 1
    for block, new in resnets.items():
        names |= {f"{block}.{a}": f"{new}.{b}" for a, b in RESNET.items()}
    return names


@functools.cache
def unet_names_back(blocks: Blocks) -> dict[str, str]:
    """The other way round; an upsampler is known in both of its places."""
    back = {new: old for old, new in unet_names(blocks).items()}
    for old, new in unet_names(blocks).items():
        if ".upsamplers." in old:
            head, _, _ = new.rsplit(".", 2)
            back |= {f"{head}.{place}.conv": old for place in (1, 2)}
    return back


def renamed(path: str, names: Mapping[str, str]) -> str | None:
    """`path` with its longest known beginning replaced; None when none is known."""
    words = path.split(".")
    for n in range(len(words), 0, -1):
        known = names.get(".".join(words[:n]))
        if known is not None:
            return ".".join([known, *words[n:]])
    return None
