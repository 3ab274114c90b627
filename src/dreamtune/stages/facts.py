"""What a picture says of itself: A1111's text inside the PNG, and exactly, for making it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import __version__
from dreamtune.formats import header, infotext, prompts
from dreamtune.formats.samplers import Sampler
from dreamtune.stages.adapters import Adapter
from dreamtune.stages.scenes import Scene

if TYPE_CHECKING:
    from dreamtune.families import Family
    from dreamtune.sampling import Look

SHORT = 12  # characters of a hash that A1111 shows for adapters
MODEL = 10  # and for models


def text(scene: Scene, look: Look, family: Family, base: str, base_hash: str) -> str:
    """The PNG's `parameters`. The prompt has the words that other tools know the concepts by."""
    networks = {a.artifact.name: a for a in scene.adapters if not a.is_word}
    words = {
        file.stem: _file_hash(a, file)
        for a in scene.adapters
        if a.is_word
        for file in (_file(a, identifier) for identifier in a.identifiers)
    }
    sampler = look.sampler or Sampler(family.sampler)
    shown: dict[str, object] = {
        "Steps": look.steps,
        "Sampler": sampler.name,
        **({"Schedule type": sampler.schedule} if sampler.schedule else {}),
        "CFG scale": f"{look.guidance:g}",
        "Seed": scene.seed,
        "Size": f"{look.size[0]}x{look.size[1]}",
        "Model hash": base_hash[:MODEL],
        "Model": base,
        **({"Denoising strength": f"{look.strength:g}"} if look.start else {}),
        **_hashes("Lora hashes", {name: _body_hash(a) for name, a in networks.items()}),
        **_hashes("TI hashes", words),
        "Version": f"dreamtune {__version__}",
    }
    loads = [f"<lora:{name}:{a.weight:g}>" for name, a in networks.items() if _body_hash(a)]
    prompt = " ".join([_said(scene.prompt, scene, family), *loads])
    return infotext.dump(prompt, _said(look.negative, scene, family), shown)


def exact(scene: Scene, look: Look, base: str, base_hash: str, start: object) -> dict[str, Any]:
    """All that made it, as typed."""
    adapters = [{**a.record(), "weight": a.weight} for a in scene.adapters]
    return {
        "file": scene.file,
        "prompt": scene.prompt,
        "negative": look.negative,
        "seed": scene.seed,
        "steps": look.steps,
        "guidance": look.guidance,
        "rescale": look.rescale,
        "size": [*look.size],
        "scheduler": str(look.sampler) if look.sampler else None,
        "base": base,
        "base_hash": base_hash,
        "adapters": adapters,
        **({"start": start, "strength": look.strength} if look.start else {}),
        **({"at": [*scene.at]} if scene.in_grid else {}),
    }


def _said(prompt: str, scene: Scene, family: Family) -> str:
    """The prompt with the words that A1111 has for concepts.

    An embedding's is the name of its file, one that comes with a LoRA is without its brackets.
    """
    plain, marks = prompts.strengths(prompt, [i for a in scene.adapters for i in a.identifiers])
    stack = family.text[0]
    for adapter in scene.adapters:
        for identifier in adapter.identifiers:
            word = stack.words.get(identifier, identifier)
            first = word.split()[0]
            if adapter.is_word:
                word = _file(adapter, identifier).stem
            elif first in stack.added:
                word = first.strip("<>")
            strength = marks.get(identifier, 1.0) if adapter.is_word else 1.0
            word = word if strength == 1 else f"({word}:{strength:g})"
            plain = plain.replace(identifier, word)
    return plain


def _hashes(key: str, found: dict[str, str]) -> dict[str, str]:
    listed = ", ".join(f"{name}: {sha[:SHORT]}" for name, sha in found.items() if sha)
    return {key: listed} if listed else {}


def _file(adapter: Adapter, identifier: str = "") -> Path:
    """The file for the user interfaces; of several embeddings each has its own."""
    name = adapter.artifact.name
    own = adapter.folder / f"{name}-{identifier.strip('[]')}.safetensors"
    return own if identifier and own.exists() else adapter.folder / f"{name}.safetensors"


def _body_hash(adapter: Adapter) -> str:
    """What A1111 knows a LoRA by: the hash of the bytes after the header, which the header says."""
    path = _file(adapter)
    return header.read_header(path).metadata.get("sshs_model_hash", "") if path.exists() else ""


def _file_hash(adapter: Adapter, path: Path) -> str:
    """What A1111 knows an embedding by: the hash of the file."""
    entry = adapter.artifact.files.get(path.relative_to(adapter.artifact.path).as_posix())
    return str(entry["sha256"]) if entry else ""
