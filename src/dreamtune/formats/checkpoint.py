"""Single-file checkpoints of Stable Diffusion 1.x, 2.x and XL: which it is, whose each tensor is.

    model.diffusion_model.…                            the UNet, in Stability's names
    first_stage_model.…                                the autoencoder
    cond_stage_model.transformer.text_model.…          1.x: CLIP, in transformers' names
    cond_stage_model.model.…                           2.x: OpenCLIP
    conditioner.embedders.0.transformer.…, 1.model.…   XL: CLIP and OpenCLIP

Only names and shapes count. Metadata is not looked at, since it is often wrong. The code that the
names come from: CompVis/stable-diffusion, ldm/modules/diffusionmodules/{openaimodel,model}.py, and
mlfoundations/open_clip, transformer.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dreamtune.errors import Damaged, Usage, UserError
from dreamtune.formats import ldm

Shapes = Mapping[str, tuple[int, ...]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
FIRST = f"{UNET}input_blocks.0.0.weight"
WHOLE = "give a checkpoint with everything in it, or a folder in the diffusers layout"
EDM = ("edm_mean", "edm_vpred.sigma_max")  # noise other than DDPM's: Playground 2.5, CosXL


@dataclass(frozen=True)
class Text:
    """A text encoder: its part in the diffusers layout, and where it is in a file."""

    part: str
    prefix: str
    open_clip: bool
    unused: int = 0  # layers at its end that the base does not use, so that the part lacks them


@dataclass(frozen=True)
class Kind:
    """One of the layouts."""

    name: str
    pipeline: str
    text: tuple[Text, ...]


XL = Kind(
    "Stable Diffusion XL",
    "StableDiffusionXLPipeline",
    (
        Text("text_encoder", "conditioner.embedders.0.transformer.", False),
        Text("text_encoder_2", "conditioner.embedders.1.model.", True),
    ),
)
TWO = Kind(
    "Stable Diffusion 2.x",
    "StableDiffusionPipeline",
    (Text("text_encoder", "cond_stage_model.model.", True, unused=1),),
)
ONE = Kind(
    "Stable Diffusion 1.x",
    "StableDiffusionPipeline",
    (Text("text_encoder", "cond_stage_model.transformer.", False),),
)

# What else people have as a .safetensors file, by a name that only it has.
OTHERS = {
    r"lora_.*|.*[._]lora_(down|up|A|B)\..*": "a LoRA, which --with takes",
    r"emb_params|clip_[lg]|string_to_param.*": "an embedding, which --with takes",
    r"(.*\.)?double_blocks\.0\..*": "a FLUX transformer",
    r"(.*\.)?joint_blocks\.0\..*": "a checkpoint of Stable Diffusion 3",
    r"control_model\..*|controlnet_.*": "a ControlNet",
    r"down_blocks\.0\..*": "one part of a folder in the diffusers layout",
    r"(encoder|decoder)\.conv_in\.weight": "an autoencoder",
}


def recognise(name: str, shapes: Shapes) -> Kind:
    """Which layout a file has. Usage for what is no text-to-image base, Damaged for part of one."""
    if FIRST not in shapes:
        raise _something_else(name, shapes)
    if any(key in shapes for key in EDM):
        raise Usage(f"{name} was trained with another noise, EDM's", fix="use another base")
    for kind in (XL, TWO, ONE):
        if all(_has(shapes, text.prefix) for text in kind.text):
            break
    else:
        if _has(shapes, "conditioner.embedders.0.model."):
            raise Usage(f"{name} is the refiner of Stable Diffusion XL", fix="use the base")
        raise Damaged(f"{name} has no text encoder", fix=WHOLE)
    if not _has(shapes, VAE):
        raise Damaged(f"{name} has no autoencoder", fix=WHOLE)
    return kind


def describe(name: str, shapes: Shapes) -> str | None:
    """What a file that is no adapter is, in words; None when nothing is known of it."""
    if FIRST in shapes:
        try:
            return f"a checkpoint of {recognise(name, shapes).name}"
        except UserError as e:
            return e.what.removeprefix(f"{name} is ")
    matching = (w for p, w in OTHERS.items() if any(re.fullmatch(p, key) for key in shapes))
    return next(matching, None)


def _something_else(name: str, shapes: Shapes) -> UserError:
    for pattern, what in OTHERS.items():
        if any(re.fullmatch(pattern, key) for key in shapes):
            return Usage(f"{name} is {what}, and no whole base", fix=WHOLE)
    return Usage(f"{name} is no checkpoint of Stable Diffusion 1.x, 2.x or XL", fix=WHOLE)


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in shapes)


@dataclass(frozen=True)
class Place:
    """Whose a tensor of a file is, in the diffusers layout, and what to do to it.

    third: which third of its rows; transposed: the module has its transpose; linear: it is a
    convolution of 1 x 1 in the file and a matrix in the module.
    """

    part: str
    name: str
    third: int | None = None
    transposed: bool = False
    linear: bool = False


def places(kind: Kind, shapes: Shapes) -> dict[str, list[Place]]:
    """File's name to places, for all that belongs to a part.

    A tensor that is under a part's prefix and that nobody knows keeps its name there, so that it
    can be noticed; what is under none (EMA copies, schedules of the noise) is no part's.
    """
    unet = ldm.unet_names_back(blocks_of(shapes))
    vae = {new: old for old, new in vae_names(*vae_depth(shapes)).items()}
    found: dict[str, list[Place]] = {}
    for key in shapes:
        if key.startswith(UNET):
            bare = key.removeprefix(UNET)
            found[key] = [Place("unet", ldm.renamed(bare, unet) or bare)]
        elif key.startswith(VAE) and not key.startswith(f"{VAE}loss."):
            bare = key.removeprefix(VAE)
            name = ldm.renamed(bare, vae) or bare
            found[key] = [Place("vae", name, linear=".attentions." in name)]
    for text in kind.text:
        used = used_layers(text, shapes)
        for key in (key for key in shapes if key.startswith(text.prefix)):
            bare = key.removeprefix(text.prefix)
            plain = [Place(text.part, bare)]
            found[key] = _open_clip(text, bare, used) if text.open_clip else plain
    return found


def key_of(
    kind: Kind, place: Place, blocks: ldm.Blocks, vae: tuple[int, int]
) -> tuple[str, Place] | None:
    """Where a part's tensor is in a file, and what was done to it there; None for no place.

    The inverse of `places`. vae: levels, and resnets in each level of the encoder.
    """
    part, name = place.part, place.name
    if part == "unet":
        return UNET + (ldm.renamed(name, ldm.unet_names(blocks)) or name), Place(part, name)
    if part == "vae":
        linear = ".attentions." in name
        there = ldm.renamed(name, vae_names(*vae)) or name
        return VAE + there, Place(part, name, linear=linear)
    text = next((text for text in kind.text if text.part == part), None)
    if text is None:
        return None
    if not text.open_clip:
        return text.prefix + name, Place(part, name)
    found = _in_open_clip(name)
    third, transposed = found[1] if found else None, name == "text_projection.weight"
    return (text.prefix + found[0], Place(part, name, third, transposed)) if found else None


def _in_open_clip(name: str) -> tuple[str, int | None] | None:
    """OpenCLIP's name for one of transformers', and which third of it that is."""
    if name == "text_projection.weight":
        return "text_projection", None
    bare = name.removeprefix("text_model.")
    for theirs, ours in OPEN_CLIP.items():
        if bare == ours:
            return theirs, None
    if not (m := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", bare)):
        return None
    layer, inner, leaf = f"transformer.resblocks.{m[1]}", m[2], m[3]
    thirds = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    if inner in thirds:
        return f"{layer}.attn.in_proj_{leaf}", thirds.index(inner)
    back = {ours: theirs for theirs, ours in OPEN_CLIP_LAYER.items()}
    return (f"{layer}.{back[inner]}.{leaf}", None) if inner in back else None


def numbers(shapes: Shapes, pattern: str) -> list[int]:
    """The different numbers that stand for the group in names that begin with `pattern`, sorted."""
    begin = re.compile(pattern)
    return sorted({int(m[1]) for key in shapes if (m := begin.match(key))})


def levels_of(shapes: Shapes) -> list[list[int]]:
    """The UNet's input blocks with a resnet, by level; each level but the last ends in a stride."""
    levels: list[list[int]] = [[]]
    for i in numbers(shapes, re.escape(UNET) + r"input_blocks\.(\d+)\."):
        if f"{UNET}input_blocks.{i}.0.op.weight" in shapes:
            levels.append([])
        elif i:
            levels[-1].append(i)
    return levels


def depth(shapes: Shapes, block: str) -> int:
    """Transformer blocks in a block of the UNet, such as "input_blocks.4.1"."""
    return len(numbers(shapes, re.escape(f"{UNET}{block}") + r"\.transformer_blocks\.(\d+)\."))


def blocks_of(shapes: Shapes) -> ldm.Blocks:
    """How a file's UNet is divided. Damaged when the way up, which has one resnet a level more,
    does not fit the way down.
    """
    levels = levels_of(shapes)
    up = len(numbers(shapes, re.escape(UNET) + r"output_blocks\.(\d+)\."))
    if not all(levels) or up != sum(len(level) + 1 for level in levels):
        raise Damaged("the UNet's ways down and up do not fit", fix="use the original base")
    attention = (depth(shapes, f"input_blocks.{level[0]}.1") > 0 for level in levels)
    return ldm.Blocks(tuple(len(level) for level in levels), tuple(attention))


def vae_depth(shapes: Shapes) -> tuple[int, int]:
    """Levels of a file's autoencoder, and resnets in each level of its encoder."""
    down = re.escape(f"{VAE}encoder.down.")
    levels, layers = r"(\d+)\.", r"0\.block\.(\d+)\."
    return len(numbers(shapes, down + levels)), len(numbers(shapes, down + layers))


ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae_names(levels: int, layers: int) -> dict[str, str]:
    """{beginning of an autoencoder's path in diffusers: in Stability's code}, which counts the
    decoder's levels from the other end. What is not listed has the same name in both.
    """
    resnets: dict[str, str] = {}
    names: dict[str, str] = {}
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        old_down, old_up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        resnets |= {f"{down}.resnets.{i}": f"{old_down}.block.{i}" for i in range(layers)}
        resnets |= {f"{up}.resnets.{i}": f"{old_up}.block.{i}" for i in range(layers + 1)}
        names[f"{down}.downsamplers.0"] = f"{old_down}.downsample"
        names[f"{up}.upsamplers.0"] = f"{old_up}.upsample"
    for side in ("encoder", "decoder"):
        resnets |= {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in (0, 1)}
        attention, old = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        names |= {f"{attention}.{a}": f"{old}.{b}" for a, b in ATTENTION.items()}
        names[f"{side}.conv_norm_out"] = f"{side}.norm_out"
    shortcuts = {f"{a}.conv_shortcut": f"{b}.nin_shortcut" for a, b in resnets.items()}
    return names | resnets | shortcuts


def text_layers(text: Text, shapes: Shapes) -> int:
    """Layers of a text encoder in a file."""
    layer = r"transformer\.resblocks" if text.open_clip else r"(?:text_model\.)?encoder\.layers"
    return len(numbers(shapes, re.escape(text.prefix) + layer + r"\.(\d+)\."))


def used_layers(text: Text, shapes: Shapes) -> int:
    """Layers that the base uses: of 2.x all but the last.

    diffusers' own converter leaves that one out, so that a file has just the 23 in use.
    """
    layers = text_layers(text, shapes)
    width = shapes.get(f"{text.prefix}ln_final.weight", (0,))[0]
    return 23 if text.unused and (layers, width) == (23, 1024) else layers - text.unused


OPEN_CLIP = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def _open_clip(text: Text, name: str, used: int) -> list[Place]:
    """Places of one of OpenCLIP's tensors; none for a layer that the base does not use."""
    if name == "text_projection":  # there x @ P, in transformers x @ P.T
        return [Place(text.part, "text_projection.weight", transposed=True)]
    if name in OPEN_CLIP:
        return [Place(text.part, f"text_model.{OPEN_CLIP[name]}")]
    if not (m := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)):
        return [Place(text.part, name)]
    number, inner, kind = m.groups()
    if int(number) >= used:
        return []
    layer = f"text_model.encoder.layers.{number}"
    if inner == "attn.in_proj":
        thirds = enumerate(("q_proj", "k_proj", "v_proj"))
        return [Place(text.part, f"{layer}.self_attn.{p}.{kind}", third=i) for i, p in thirds]
    return [Place(text.part, f"{layer}.{OPEN_CLIP_LAYER.get(inner, inner)}.{kind}")]
