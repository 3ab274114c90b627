"""Prompts with settings of their own, one a line, as sd-scripts' sample prompts have them.

    [V01] dog in the snow --w 512 --h 768 --d 7 --s 30 --l 6 --n blurry --ss euler_a
    [V01] dog in the snow --size 512x768 --seed 7 --steps 30 --guidance 6 --negative blurry

Empty lines and those that begin with # are passed over. `line_to_prompt_dict` in sd-scripts'
library/train_util.py has the short names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamtune import recipe
from dreamtune.errors import Usage, suggest
from dreamtune.settings import Sample

SHORT = {"n": "negative", "d": "seed", "s": "steps", "l": "guidance", "g": "guidance"}
SHORT |= {"ss": "scheduler"}
# What may differ from picture to picture.
OWN = ("negative", "seed", "count", "steps", "guidance", "size", "scheduler", "strength", "weight")
_FLAG = re.compile(r"(?:^|\s+)--(?=[A-Za-z])")


@dataclass(frozen=True)
class Line:
    """A prompt as typed, and the settings that it is made with."""

    prompt: str
    sample: Sample

    @classmethod
    def read(cls, text: str, sample: Sample) -> Line:
        """A line of a file; Usage for settings that cannot be."""
        prompt, *given = _FLAG.split(text.strip())
        own: dict[str, str] = {}
        for item in given:
            name, _, value = item.partition(" ")
            key = name if name in ("w", "h") else field_of(name)
            if not value.strip() or key in own:
                fault = "is there twice" if key in own else "has no value"
                raise Usage(f"--{name} {fault} in {text.strip()!r}")
            own[key] = value.strip()
        if own.keys() & {"w", "h"}:
            if not own.keys() >= {"w", "h"}:
                raise Usage(f"{text.strip()!r} has --w or --h, and not both")
            own["size"] = f"{own.pop('w')}x{own.pop('h')}"
        return cls(prompt.strip(), settle(sample, own))


def is_prompt(text: str) -> bool:
    """Whether a line says anything."""
    return bool(text.strip()) and not text.lstrip().startswith("#")


def field_of(name: str) -> str:
    """The setting that a flag's name means: "s", "steps", "num-inference-steps"."""
    names = {recipe.flag_name(f).lstrip("-"): f.name for f in _fields()}
    names |= {alias.lstrip("-"): f.name for f in _fields() for alias in f.metadata["alias"]}
    key = {**names, **SHORT, **{f.name: f.name for f in _fields()}}.get(name.lower())
    if key is None:
        fix = suggest(name, names) or f"there is {', '.join(OWN)}"
        raise Usage(f"{name!r} is no setting that a picture can have of its own", fix=fix)
    return key


def settle(sample: Sample, own: Mapping[str, str]) -> Sample:
    """The settings with some changed, each checked as its flag is."""
    checked = recipe.resolve(Sample, table="sample", flags=own)
    return dataclasses.replace(sample, **{name: getattr(checked, name) for name in own})


def _fields() -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(Sample) if field.name in OWN]
