"""Adapter files of every origin: which layout a file has is seen by its keys and shapes alone.

    outline(path)        what it holds, from the header (no torch)
    read_adapter(path)   the updates and words themselves

`path` is a .safetensors file; for PEFT also a folder with adapter_model.safetensors, or one with
such a folder for each component. Pickles are refused by their first bytes (formats.header).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Damaged, NotFound
from dreamtune.formats import cloneofsimo, diffusers, embeddings, kohya, peft
from dreamtune.formats.entries import Entry, adapter_of
from dreamtune.formats.header import Header, read_header
from dreamtune.formats.ldm import Blocks
from dreamtune.formats.lora import DENOISERS, TEXT_ENCODERS, Adapter, Shape

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "embedding"


@dataclass(frozen=True)
class Outline:
    """One file as its header describes it."""

    path: Path
    layout: str  # kohya, diffusers, peft, cloneofsimo or embedding
    entries: list[Entry]
    words: dict[str, tuple[str | None, str]]  # key -> (word, component)
    header: Header

    @property
    def shapes(self) -> dict[str, Shape]:
        return {key: tensor.shape for key, tensor in self.header.tensors.items()}

    @property
    def signature(self) -> dict[str, Shape]:
        """The weight shape that each "component.module" must have for this file to fit a base."""
        shapes = self.shapes
        return {
            f"{entry.component}.{module}": shape
            for entry in self.entries
            for module, shape in entry.weights(shapes).items()
        }


@dataclass(frozen=True)
class Found:
    """An adapter with its tensors. A word is None where only the name of the file says it."""

    layout: str
    adapter: Adapter
    words: embeddings.Words
    metadata: dict[str, str]


def outline(path: Path, blocks: Blocks = Blocks()) -> list[Outline]:
    """What each file of an adapter holds: one, or one for each component of a PEFT folder.

    `blocks`: of the UNet, for Stability's numbering; by default those of SDXL.
    """
    return [_outline(file, component, blocks) for file, component in _files(path)]


def read_adapter(path: Path, blocks: Blocks = Blocks()) -> Found:
    """All updates and words of an adapter file or PEFT folder.

    NotFound, Unsafe (a pickle) or Damaged, which names the key that has no meaning.
    """
    found = [_read(part) for part in outline(path, blocks)]
    adapter: Adapter = {}
    for one in found:
        if twice := adapter.keys() & one.adapter.keys():
            raise Damaged(f"{path} has two adapters for the {min(twice)}")
        adapter |= one.adapter
    words = {word: vectors for one in found for word, vectors in one.words.items()}
    return Found(found[0].layout, adapter, words, found[0].metadata)


def read_words(path: Path) -> tuple[embeddings.Words, dict[str, str]]:
    """(the words of an embedding file or bundled in a LoRA file, the file's metadata)."""
    from safetensors import safe_open

    header = read_header(path)
    shapes = {key: tensor.shape for key, tensor in header.tensors.items()}
    own = layout_of(shapes) == EMBEDDING
    keys = [key for key in shapes if own or key.startswith(embeddings.BUNDLED)]
    with safe_open(path, "pt") as file:
        return embeddings.parse({key: file.get_tensor(key) for key in keys}), header.metadata


def parse(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], blocks: Blocks = Blocks()
) -> Found:
    """The same for tensors in memory."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    layout, entries, words = _meaning(shapes, metadata, blocks)
    vectors = embeddings.parse({key: tensors[key] for key in words})
    return Found(layout, adapter_of(entries, tensors.__getitem__), vectors, dict(metadata))


def _read(part: Outline) -> Found:
    from safetensors import safe_open

    with safe_open(part.path, "pt") as file:
        vectors = embeddings.parse({key: file.get_tensor(key) for key in part.words})
        adapter = adapter_of(part.entries, file.get_tensor)
    return Found(part.layout, adapter, vectors, part.header.metadata)


def _files(path: Path) -> list[tuple[Path, str | None]]:
    """The files of an adapter, each with the component that its folder names."""
    if not path.is_dir():
        return [(path, None)]
    here = path / peft.FILE
    if here.is_file():
        return [(here, path.name if path.name in (*DENOISERS, *TEXT_ENCODERS) else None)]
    names = (*DENOISERS, *TEXT_ENCODERS)
    found = [(path / n / peft.FILE, n) for n in names if (path / n / peft.FILE).is_file()]
    if not found:
        raise NotFound(f"no adapter in {path}", why=f"there is no {peft.FILE}")
    return [*found]


def _outline(path: Path, component: str | None, blocks: Blocks) -> Outline:
    header = read_header(path)
    shapes = {key: tensor.shape for key, tensor in header.tensors.items()}
    try:
        if peft_config := _peft_config(path):
            entries = peft.entries(shapes, peft_config, component)
            return Outline(path, "peft", entries, {}, header)
        return Outline(path, *_meaning(shapes, header.metadata, blocks), header)
    except Damaged as e:
        raise Damaged(f"{path.name}: {e.what}", why=e.why, fix=e.fix) from None


def _peft_config(path: Path) -> dict[str, Any]:
    """adapter_config.json beside an adapter_model.safetensors; empty where there is none."""
    file = path.with_name(peft.CONFIG)
    if path.name != peft.FILE or not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise Damaged(f"{file} cannot be read", why=str(e)) from None
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise Damaged(f"{file} describes no LoRA")
    return found


def _meaning(
    shapes: Mapping[str, Shape], metadata: Mapping[str, str], blocks: Blocks
) -> tuple[str, list[Entry], dict[str, tuple[str | None, str]]]:
    """(layout, entries, words) of a file's keys."""
    layout = layout_of(shapes)
    if layout == EMBEDDING:
        return layout, [], embeddings.places(shapes)
    words = {k: s for k, s in shapes.items() if k.startswith(embeddings.BUNDLED)}
    if layout == "cloneofsimo":
        words = {key: shapes[key] for key in cloneofsimo.words(shapes)}
    rest = {key: shape for key, shape in shapes.items() if key not in words}
    return layout, _entries(layout, rest, metadata, blocks), embeddings.places(words)


def _entries(
    layout: str, shapes: Mapping[str, Shape], metadata: Mapping[str, str], blocks: Blocks
) -> list[Entry]:
    if layout == "kohya":
        return kohya.entries(shapes, metadata, blocks)
    if layout == "cloneofsimo":
        return cloneofsimo.entries(shapes)
    if layout == "peft":
        return peft.entries(shapes, {}, None)
    return diffusers.entries(shapes, metadata)


WORDS = 64  # more tensors than this are no file of embeddings


def layout_of(shapes: Mapping[str, Shape]) -> str:
    """The layout that these keys are of; Damaged when they are of none that is known."""
    starts = tuple(f"{prefix}_" for prefix in kohya.COMPONENTS)
    if _any(shapes, lambda key: key.startswith(starts)):
        return "kohya"
    if _any(shapes, lambda key: key.startswith(peft.PREFIX)):
        return "peft"
    if _any(shapes, lambda key: cloneofsimo.KEY.fullmatch(key)):
        return "cloneofsimo"
    if _any(shapes, diffusers.is_part):
        return "diffusers"
    if shapes and len(shapes) <= WORDS and all(len(shape) in (1, 2) for shape in shapes.values()):
        return EMBEDDING
    first = f"{min(shapes)!r}" if shapes else "no tensor"
    raise Damaged("this is no adapter", why=f"of no layout that is known; it has {first}")


def _any(keys: Iterable[str], test: Any) -> bool:
    return any(test(key) for key in keys)
