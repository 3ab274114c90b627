"""The text in a PNG's `parameters`, as A1111 writes it and as every other tool reads it.

    a photo of a dog                                        the prompt, any number of lines
    Negative prompt: blurry                                 if there is one
    Steps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 1, …    three or more parameters, one line

The format cannot say everything: a line of the prompt may begin like the second part, and readers
strip spaces. What would not survive is repeated as `Exact prompt` and `Exact negative prompt`, JSON
among the parameters, so that `parse(dump(...))` gives back every character.

modules/infotext_utils.py of AUTOMATIC1111/stable-diffusion-webui (parse_generation_parameters).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

NEGATIVE = "Negative prompt:"
EXACT = {"prompt": "Exact prompt", "negative": "Exact negative prompt"}
# A1111's pattern, with a bound so that a long line takes linear time; a value in quotes is JSON.
PARAMETER = re.compile(r'(\w[\w \-/]{1,99}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FEWEST = 3  # a last line with fewer parameters is taken for prompt


@dataclass(frozen=True)
class Infotext:
    """What made one image."""

    prompt: str
    negative: str
    parameters: dict[str, str]


def dump(prompt: str, negative: str, parameters: Mapping[str, object]) -> str:
    """The text for `parameters`: Steps, Sampler, CFG scale, Seed, Size, Model, … in that order."""
    assert len(parameters) >= FEWEST, f"{len(parameters)} parameters, and readers need {FEWEST}"
    assert all(re.fullmatch(r"\w[\w \-/]+", key) for key in parameters), list(parameters)
    lines = [_plain(prompt)] if prompt else []
    if negative:
        lines.append(f"{NEGATIVE} {_plain(negative)}")
    values = {key: _quote(str(value)) for key, value in parameters.items()}
    seen = parse("\n".join([*lines, _join(values)]))
    for field, value in {"prompt": prompt, "negative": negative}.items():
        if getattr(seen, field) != value:
            # Escaped to the last comma and colon: readers that split at them see one value.
            exact = json.dumps(value).replace(",", "\\u002c").replace(":", "\\u003a")
            values[EXACT[field]] = exact
    return "\n".join([*lines, _join(values)])


def parse(text: str) -> Infotext:
    """The parts of a `parameters` text, of this or another tool; values as strings, unquoted."""
    *lines, last = text.split("\n")
    found = PARAMETER.findall(last)
    if len(found) < FEWEST:
        lines, found = [*lines, last], []
    parameters = {key: _unquote(value) for key, value in found}
    at = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    prompt = "\n".join(lines[:at])
    negative = "\n".join(lines[at:]).removeprefix(NEGATIVE).removeprefix(" ")
    prompt = parameters.pop(EXACT["prompt"], prompt)
    negative = parameters.pop(EXACT["negative"], negative)
    return Infotext(prompt, negative, parameters)


def _plain(text: str) -> str:
    """`text` as other tools may show it: no control characters, no line like the next part's."""
    shown = "".join(c if c.isprintable() or c in "\n\t\u200d" else " " for c in text)
    return shown.replace(NEGATIVE, "Negative prompt :").strip()


def _join(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in values.items())


def _quote(value: str) -> str:
    """A1111's rule (JSON where a reader would split), and JSON for what it would strip."""
    plain = value.isprintable() and value == value.strip() and not re.search('[,:"]', value)
    return value if plain else json.dumps(value)


def _unquote(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        text = json.loads(value)
    except ValueError:
        return value
    return text if isinstance(text, str) else value
