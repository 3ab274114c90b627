"""Adapters as kohya-ss/sd-scripts and LyCORIS name them, which every user interface reads.

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight   (r, in) or (r, in, kh, kw)
                                                .lora_up.weight     (out, r) or (out, r, 1, 1)
                                                .alpha              float32 scalar
                                                .dora_scale         (out, 1) or (out, 1, 1, 1)

The dots of a module path become underscores, so reading needs the words that paths are made of
(WORDS). Every family has its own names for the denoiser (sd-scripts at 48d368fa, networks/lora.py,
lora_sd3.py and lora_flux.py):

    sd     diffusers' module paths; text encoder "lora_te"
    sdxl   the blocks of Stability's sgm code ("input_blocks_4_1_..."); "lora_te1", "lora_te2"
    sd3    the blocks of Stability's MMDiT ("joint_blocks_0_x_block_..."), q, k and v in one matrix;
           "lora_te1", "lora_te2", and T5 "lora_te3"
    flux   the blocks of Black Forest Labs' code ("double_blocks_0_img_attn_qkv"); a single block
           has q, k, v and its MLP's first layer in one matrix, "linear1"; CLIP is "lora_te1"

The norm in a DoRA is that of W + change in LyCORIS and the paper, but that of W alone in ComfyUI
and Forge (Comfy-Org/ComfyUI a125cd84; pull request 15458 would change it). A file with BASE_NORM in
its metadata has magnitudes for the latter, so that these two apply what was trained. A1111 and
InvokeAI take every magnitude for one of the inputs; for them a DoRA must be written as differences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamtune.errors import Damaged, Usage, suggest
from dreamtune.formats import ldm, mmdit
from dreamtune.formats.entries import Entry, group
from dreamtune.formats.ldm import Blocks
from dreamtune.formats.lora import Adapter, LoraWeights, Shape, Update, canonical
from dreamtune.formats.lycoris import Full, Loha, Lokr

if TYPE_CHECKING:
    from torch import Tensor

Updates = Mapping[str, Update]
BASE_NORM = {"dreamtune.dora_norm": "base"}


# ---- writing


@dataclass(frozen=True)
class Layout:
    """How one family is named: the denoiser's component, the text encoders' prefixes, the paths."""

    denoiser: str
    text: dict[str, str]
    rename: Callable[[Updates, Blocks], Updates]


def dump(
    adapter: Adapter, layout: str, blocks: Blocks = Blocks()
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a kohya file.

    `layout`: a name in LAYOUTS. `blocks`: of the UNet, which sgm's numbering depends on; by default
    those of SDXL.
    """
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
        renamed = form.rename(modules, blocks) if component == form.denoiser else modules
        for module, update in renamed.items():
            name = f"{prefixes[component]}_{module.replace('.', '_')}"
            for part, tensor in _parts(update):
                tensors[f"{name}.{part}"] = tensor.contiguous()
    return tensors, {"format": "pt", **_norm_of(adapter)}


def _norm_of(adapter: Adapter) -> dict[str, str]:
    """What the metadata says of the norm that the magnitudes are for."""
    updates = (update for modules in adapter.values() for update in modules.values())
    kinds = {update.base_norm for update in updates if update.magnitude is not None}
    if len(kinds) > 1:
        raise Usage(
            "some magnitudes are for ComfyUI's rule and some are not",
            fix="name the base, so that they can be made the same: --base",
        )
    return BASE_NORM if True in kinds else {}


def _parts(update: Update) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one update, under kohya's and LyCORIS' names."""
    import torch

    if isinstance(update, Full):
        yield "diff", update.diff
        return
    if isinstance(update, LoraWeights):
        yield "lora_down.weight", update.down
        yield "lora_up.weight", update.up
    elif isinstance(update, Loha):
        yield from zip(("hada_w1_a", "hada_w1_b"), update.w1, strict=True)
        yield from zip(("hada_w2_a", "hada_w2_b"), update.w2, strict=True)
        yield from zip(("hada_t1", "hada_t2"), update.cores or (), strict=False)
    elif isinstance(update, Lokr):
        for side, name in ((update.w1, "lokr_w1"), (update.w2, "lokr_w2")):
            if isinstance(side, tuple):
                yield from zip((f"{name}_a", f"{name}_b"), side, strict=True)
            else:
                yield name, side
        if update.core is not None:
            yield "lokr_t2", update.core
    yield "alpha", torch.tensor(update.alpha, dtype=torch.float32)
    if update.magnitude is not None:
        yield "dora_scale", update.magnitude


def _sgm(updates: Updates, blocks: Blocks) -> Updates:
    found = {}
    for path, update in updates.items():
        name = ldm.renamed(path, ldm.unet_names(blocks))
        if name is None:
            raise Usage(f"the module {path!r} has no name in the kohya layout 'sdxl'")
        found[name] = update
    return found


CLIPS = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
T5 = {"text_encoder_3": "lora_te3"}
LAYOUTS = {
    "sd": Layout("unet", {"text_encoder": "lora_te"}, lambda updates, _: updates),
    "sdxl": Layout("unet", CLIPS, _sgm),
    "sd3": Layout("transformer", CLIPS | T5, lambda u, _: mmdit.dump(u, mmdit.SD3)),
    "flux": Layout("transformer", CLIPS | T5, lambda u, _: mmdit.dump(u, mmdit.FLUX)),
}


# ---- reading

COMPONENTS = {
    "lora_unet": "unet",
    "lycoris": "unet",  # SimpleTuner
    "lora_transformer": "transformer",  # OneTrainer
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
}


def entries(
    shapes: Mapping[str, Shape], metadata: Mapping[str, str], blocks: Blocks = Blocks()
) -> list[Entry]:
    """What the keys of a kohya file mean; sd, sdxl (either block naming), sd3 or flux.

    Damaged names what has no meaning here.
    """
    base_norm = metadata.items() >= BASE_NORM.items()
    parts = group((*_halves(key), key) for key in shapes)
    return [_entry(name, found, blocks, base_norm) for name, found in parts.items()]


def _halves(key: str) -> tuple[str, str]:
    name, _, part = key.partition(".")
    return name, part


def _entry(name: str, parts: Mapping[str, str], blocks: Blocks, base_norm: bool) -> Entry:
    """Component and module(s) of one kohya name."""
    prefix = next((p for p in COMPONENTS if name.startswith(f"{p}_")), None)
    if prefix is None:
        raise Damaged(f"the LoRA key {name!r} names no known component")
    component, path = COMPONENTS[prefix], _dotted(name.removeprefix(f"{prefix}_"))
    if path and component == "unet" and (found := mmdit.modules(name, path)):
        return Entry(name, "transformer", found[0], parts, None, base_norm, found[1])
    if path and component == "unet" and path.startswith(ldm.UNET_STARTS):
        path = ldm.renamed(path, ldm.unet_names_back(blocks))
    elif path and path.startswith("transformer_blocks."):
        component = "transformer"
    if path is None:
        raise Damaged(f"the LoRA key {name!r} names no known module")
    return Entry(name, component, {canonical(component, path): 1}, parts, None, base_norm)


# Every word that a module path of these models is made of.
WORDS = (
    "down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers transformer_blocks "
    "attn1 attn2 to_q to_k to_v to_out ff net proj proj_in proj_out "
    "conv conv1 conv2 conv_in conv_out conv_shortcut time_emb_proj "
    "time_embedding add_embedding pool linear_1 linear_2 "
    "input_blocks middle_block output_blocks in_layers emb_layers out_layers skip_connection op "
    "time_embed label_emb out "
    "joint_blocks x_block context_block attn qkv mlp fc1 fc2 adaLN_modulation final_layer linear "
    "x_embedder t_embedder y_embedder context_embedder pos_embed time_text_embed "
    "timestep_embedder text_embedder norm1 norm1_context norm_out ff_context add_q_proj add_k_proj "
    "add_v_proj to_add_out single_transformer_blocks norm proj_mlp guidance_embedder "
    "double_blocks single_blocks img_attn txt_attn img_mlp txt_mlp img_mod txt_mod "
    "linear1 linear2 modulation lin img_in txt_in time_in vector_in guidance_in in_layer out_layer "
    "text_model encoder layers self_attn q_proj k_proj v_proj out_proj text_projection "
    "block layer SelfAttention DenseReluDense q k v o wi_0 wi_1 wo "
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
