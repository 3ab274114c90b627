"""Adapters as files for other programs: any layout, proved, dated and with what they say.

Nothing here is an artifact: the files are for a user interface's folder or another program, and
carry the date (SOURCE_DATE_EPOCH where it is set), which payloads of the store do not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import console, fsops
from dreamtune.errors import NonFinite, NotFound, Usage, WouldOverwrite
from dreamtune.formats import diffusers, embeddings, kohya, lora, modelspec, peft, proof
from dreamtune.formats.entries import adapter_of
from dreamtune.formats.ldm import Blocks
from dreamtune.formats.lora import LoraWeights
from dreamtune.stages.sources import LORA, Ground, Source

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.formats.lora import Adapter, Update

KOHYA = {"sdxl": "sdxl", "sd3": "sd3", "flux": "flux"}  # by base; the others are named as sd
LEARNED = "learned_embeds.safetensors"
NO_BASE = (
    "its magnitudes are for the paper's rule, as LyCORIS reads them; --base NAME makes them exact"
)

SPECS = {"sd1": "sd1", "sd2": "sd2-512", "sdxl": "sdxl", "sd3": "sd3-medium", "flux": "flux-dev"}
SPECS |= {"mini": "mini"}  # base -> key of modelspec.BASES where the file says none
Tensors = dict[str, "Tensor"]
Metadata = dict[str, str]
Files = dict[str, tuple[Tensors, Metadata] | dict[str, Any]]  # or a JSON object


@dataclass(frozen=True)
class Wish:
    """How an adapter is to be written."""

    out: Path
    layout: str = "kohya"
    precision: str = "keep"
    difference: bool = False  # DoRA as what it adds to the base, for readers with another rule
    force: bool = False


def places(source: Source, wish: Wish) -> dict[str, Path]:
    """What will be written where, before any work: file name to path.

    WouldOverwrite when something is there, Usage when `out` does not suit the layout.
    """
    folder, first = _folder(source, wish)
    names = _names(source, wish, first)
    paths = {name: folder / name for name in names}
    for path in paths.values():
        if path.exists() and not wish.force:
            raise WouldOverwrite(f"{path} exists", fix="give another --out, or --force")
    return paths


def _folder(source: Source, wish: Wish) -> tuple[Path, str]:
    """The folder, and the name of the adapter's file in it."""
    out = wish.out
    if out.suffix.lower() == ".safetensors":
        if wish.layout == "peft":
            raise Usage(f"--out {out} is a file", why="PEFT's layout is a folder")
        if not out.parent.is_dir():
            raise NotFound(f"there is no folder {out.parent} for --out")
        return out.parent, out.name
    if wish.layout == "kohya" and not out.is_dir():
        raise Usage(f"--out {out} must end in .safetensors, or be a folder that is there")
    return out, LORA if wish.layout == "diffusers" else f"{source.name}.safetensors"


def _names(source: Source, wish: Wish, first: str) -> list[str]:
    """The files: one for all updates, or a folder for each part, and those of words."""
    if wish.layout == "peft":
        parts = [f"{part}/{file}" for part in source.adapter for file in (peft.FILE, peft.CONFIG)]
        return parts + _word_files(source, LEARNED)
    if not source.adapter:
        return _word_files(source, first)
    words = _word_files(source, LEARNED) if wish.layout == "diffusers" else []  # else bundled
    return [first, *words]


def word_places(source: Source, wish: Wish) -> list[Path]:
    """Where the words of a source without updates go; WouldOverwrite when something is there."""
    folder = wish.out.parent if wish.out.suffix else wish.out
    paths = [folder / f"{_plain(word)}.safetensors" for word in source.words]
    for path in paths:
        if path.exists() and not wish.force:
            raise WouldOverwrite(f"{path} exists", fix="give another --out, or --force")
    return paths


def write_words(source: Source, paths: Sequence[Path]) -> list[Path]:
    """A file for each word, as user interfaces want it: its name is what is typed."""
    for path, (word, vectors) in zip(paths, source.words.items(), strict=True):
        fsops.make_folder(path.parent)
        fsops.write_safetensors(path, *_word(source, Wish(path), word, vectors))
    return list(paths)


def _word_files(source: Source, name: str) -> list[str]:
    """NAME.safetensors, or one for each of several words: NAME-word.safetensors."""
    stem = name.removesuffix(".safetensors")
    words = [_plain(word) for word in source.words]
    return [f"{stem}.safetensors" if len(words) == 1 else f"{stem}-{w}.safetensors" for w in words]


def _plain(word: str) -> str:
    """A word as part of a file name: a user interface wants it typed."""
    return "".join(c for c in word if c.isalnum() or c in "_-") or "word"


def write(source: Source, wish: Wish, ground: Ground | None = None) -> list[Path]:
    """Write an adapter's files and say where they are; everything is proved before.

    ground: the base, where DoRA or the numbering of its blocks needs it.
    """
    paths = places(source, wish)
    source = replace(source, adapter=_prepared(source, wish, ground))
    made = _made(source, wish, ground, list(paths))
    if wish.layout == "kohya" and source.adapter and source.words:
        console.say("its words are inside, as A1111 reads them; for ComfyUI: convert --to words")
    for name, content in made.items():
        path = paths[name]
        fsops.make_folder(path.parent)
        if isinstance(content, tuple):
            fsops.write_safetensors(path, *content)
        else:
            fsops.write_json(path, content)
    return list(paths.values())


def _prepared(source: Source, wish: Wish, ground: Ground | None) -> Adapter:
    """The updates in the form that the readers of the layout apply right."""
    from dreamtune.formats.lycoris import Full

    adapter = source.adapter
    if not source.is_dora:
        return adapter
    if wish.difference:
        if ground is None:
            raise Usage("what a DoRA adds depends on the base", fix="name the base: --base")
        return {
            part: {
                module: u
                if u.magnitude is None
                else Full(lora.delta(u, ground.weight(part, module)))
                for module, u in modules.items()
            }
            for part, modules in adapter.items()
        }
    if ground is not None:
        return lora.for_base_norm(adapter, ground.weight, base_norm=wish.layout == "kohya")
    if wish.layout == "kohya":
        console.warn(f"{source.label} is a DoRA: {NO_BASE}")
    return adapter


# ---- the content


def _made(source: Source, wish: Wish, ground: Ground | None, names: Sequence[str]) -> Files:
    """The content of every file, by name, in the order of `_names`."""
    files: Files = {}
    if wish.layout == "peft":
        for part, updates in source.adapter.items():
            flat = part == "text_encoder" and source.base != "sd3"
            tensors, config = peft.dump(part, updates, flat)
            _prove(source, {part: updates}, _peft_read(part, tensors, config))
            files[f"{part}/{peft.FILE}"] = _cast(tensors, wish), {"format": "pt"}
            files[f"{part}/{peft.CONFIG}"] = config
    elif source.adapter:
        dump = _kohya if wish.layout == "kohya" else _diffusers
        files[names[0]] = dump(source, wish, ground)
    left = [name for name in names if name not in files]
    for name, (word, vectors) in zip(left, source.words.items(), strict=False):
        files[name] = _word(source, wish, word, vectors)
    return files


def _peft_read(part: str, tensors: Tensors, config: dict[str, Any]) -> Adapter:
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return adapter_of(peft.entries(shapes, config, part), tensors.__getitem__)


def _kohya(source: Source, wish: Wish, ground: Ground | None) -> tuple[Tensors, Metadata]:
    layout = (
        ground.layout
        if ground
        else str(source.facts.get("family") or KOHYA.get(source.base or "", "sd"))
    )
    blocks = ground.blocks if ground else Blocks()
    tensors, marks = kohya.dump(source.adapter, layout, blocks)
    _prove(source, source.adapter, proof.read_back(tensors, marks, blocks))
    for word, vectors in source.words.items():
        tensors |= embeddings.dump_bundled(_plain(word), vectors)
    return _finished(source, wish, tensors, marks, "lora")


def _diffusers(source: Source, wish: Wish, _: Ground | None) -> tuple[Tensors, Metadata]:
    tensors, marks = diffusers.dump(source.adapter)
    _prove(source, source.adapter, proof.read_back(tensors, marks))
    return _finished(source, wish, tensors, marks, "lora")


def _word(
    source: Source, wish: Wish, word: str, vectors: Mapping[str, Tensor]
) -> tuple[Tensors, Metadata]:
    if wish.layout == "kohya":
        tensors = embeddings.dump(vectors)
    else:
        tensors = embeddings.dump_diffusers(word, vectors)
    return _finished(source, wish, tensors, {}, "textual-inversion")


def _finished(
    source: Source, wish: Wish, tensors: Tensors, marks: Metadata, kind: str
) -> tuple[Tensors, Metadata]:
    """Tensors in the precision asked for, and all that the file says of itself."""
    tensors = _cast(tensors, wish)
    return tensors, describe(source, tensors, marks, kind)


def describe(source: Source, tensors: Tensors, marks: Metadata, kind: str) -> Metadata:
    """The metadata: what the source said that is no matter of layout, hashes, and the date.

    Which base it is for, and what kind of file it is, the tensors say.
    """
    mine = ("modelspec.", "ss_") if kind == "lora" else ("modelspec.",)
    kept = {k: v for k, v in source.metadata.items() if k.startswith(mine)}
    body, title = modelspec.body_sha256(tensors), kept.get("modelspec.title", source.name)
    base = _spec(source, kept)
    if base:
        found = modelspec.modelspec(base, kind, body, title=title)
        if kind == "lora":
            found |= modelspec.kohya_keys(base, source.adapter, body, name=source.name)
        kept |= found
    elif architecture := kept.get("modelspec.architecture"):
        kept["modelspec.architecture"] = f"{architecture.partition('/')[0]}/{kind}"
    said = {"modelspec.date": date(), "modelspec.hash_sha256": f"0x{body}"}
    return {**kept, **marks, **said, **modelspec.sshs_hashes(tensors, kept)}


def _spec(source: Source, kept: Metadata) -> modelspec.Base | None:
    """The base by its shapes; which of several like it, if the metadata says."""
    if source.base not in SPECS:
        return None
    like = [base for key, base in modelspec.BASES.items() if key.startswith(source.base)]
    said = kept.get("modelspec.architecture", "").partition("/")[0]
    told = [
        base
        for base in like
        if base.architecture == said
        and base.prediction == kept.get("modelspec.prediction_type", "")
    ]
    return next(iter(told), modelspec.BASES[SPECS[source.base]])


def date() -> str:
    """Now in UTC, or the time in SOURCE_DATE_EPOCH: https://reproducible-builds.org/specs."""
    seconds = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = time.gmtime(int(seconds) if seconds.isdecimal() else None)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)


def _cast(tensors: Tensors, wish: Wish) -> Tensors:
    """Floating point tensors in the precision asked for; alphas stay as they are."""
    import torch

    if wish.precision == "keep":
        return tensors
    names = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    dtype, found = names[wish.precision], {}
    for name, tensor in tensors.items():
        cast = name.endswith(".alpha") or not tensor.is_floating_point()
        found[name] = tensor if cast else tensor.to(dtype)
        if not found[name].isfinite().all():
            raise NonFinite(
                f"{name} does not fit into {wish.precision}",
                why=f"its largest value is {float(tensor.abs().max()):g}",
                fix="use --precision fp32 or bf16",
            )
    return found


def _prove(source: Source, adapter: Adapter, read: Adapter) -> None:
    """Damaged when what was read back does not change weights as the source does.

    Two forms of a DoRA that agree on one matrix of no special kind agree on all, so any will do.
    Equal factors need no product to be compared.
    """
    import torch

    same = {
        (part, module)
        for part, modules in adapter.items()
        for module, update in modules.items()
        if _equal(update, read.get(part, {}).get(module))
    }
    adapter, read = _without(adapter, same), _without(read, same)

    def live() -> Iterator[tuple[str, str, Tensor, Tensor]]:
        for part, modules in adapter.items():
            for module, update in modules.items():
                shape = update.shape
                count = math.prod(shape)
                weight = torch.arange(count, dtype=torch.float32).sin().reshape(shape)
                yield part, module, weight, lora.delta(update, weight)

    proof.check({source.label: read}, live())


def _equal(mine: Update, other: Update | None) -> bool:
    """Whether two LoRAs have the same factors, bit for bit."""
    import torch

    if not (isinstance(mine, LoraWeights) and isinstance(other, LoraWeights)):
        return False
    plain = mine.magnitude is None and other.magnitude is None
    alike = plain and math.isclose(mine.alpha, other.alpha, rel_tol=1e-7)  # kohya's is fp32
    return alike and torch.equal(mine.down, other.down) and torch.equal(mine.up, other.up)


def _without(adapter: Adapter, some: Collection[tuple[str, str]]) -> Adapter:
    return {
        part: {module: u for module, u in modules.items() if (part, module) not in some}
        for part, modules in adapter.items()
    }
