"""What a picture says of itself: A1111's text inside the PNG, and exactly, for making it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreamtune import __version__
from dreamtune.formats import infotext, prompts
from dreamtune.formats.samplers import Sampler
from dreamtune.stages.adapters import record
from dreamtune.stages.scenes import Scene

if TYPE_CHECKING:
    from dreamtune.families import Family
    from dreamtune.sampling import Look

SHORT = 12  # characters of a hash that A1111 shows for adapters
MODEL = 10  # and for models


def text(scene: Scene, look: Look, family: Family, base: str, base_hash: str) -> str:
    """The PNG's `parameters`. The prompt has the words that other tools know the concepts by."""
    networks = {a.name: a for a in scene.adapters if not a.is_word}
    stack = family.text[0]
    words = {
        a.spoken(identifier, stack): a.word_hash(identifier)
        for a in scene.adapters
        if a.is_word
        for identifier in a.identifiers
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
        **_hashes("Lora hashes", {name: a.network_hash for name, a in networks.items()}),
        **_hashes("TI hashes", words),
        "Version": f"dreamtune {__version__}",
    }
    loads = [f"<lora:{name}:{a.weight:g}>" for name, a in networks.items() if a.network_hash]
    prompt = " ".join([_said(scene.prompt, scene, family), *loads])
    return infotext.dump(prompt, _said(look.negative, scene, family), shown)


def exact(scene: Scene, look: Look, base: str, base_hash: str, start: object) -> dict[str, Any]:
    """All that made it, as typed."""
    used = [record(a) for a in scene.adapters]
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
        "adapters": used,
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
            word = adapter.spoken(identifier, stack)
            strength = marks.get(identifier, 1.0) if adapter.is_word else 1.0
            word = word if strength == 1 else f"({word}:{strength:g})"
            plain = plain.replace(identifier, word)
    return plain


def _hashes(key: str, found: dict[str, str]) -> dict[str, str]:
    listed = ", ".join(f"{name}: {sha[:SHORT]}" for name, sha in found.items() if sha)
    return {key: listed} if listed else {}
