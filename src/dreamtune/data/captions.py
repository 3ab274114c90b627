"""What a photo is said to show: a template with the identifier and the class word, and bulk edits."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import Usage, suggest

TEMPLATES = {"subject": "a photo of {identifier} {class}", "style": "{class} in {identifier} style"}
FIELDS = ("identifier", "class")


@dataclass(frozen=True)
class Concept:
    """identifier: as typed, such as "[V01]"; class_word: what kind of thing it is."""

    identifier: str
    class_word: str
    kind: str = "subject"

    def to_dict(self) -> dict[str, str]:
        return {"identifier": self.identifier, "class_word": self.class_word, "kind": self.kind}


def fill(template: str, concept: Concept) -> str:
    """The template with {identifier} and {class} replaced; Usage for another {field}."""
    parts = []
    try:
        for text, name, _, _ in string.Formatter().parse(template):
            parts.append(text)
            if name is not None:
                parts.append({"identifier": concept.identifier, "class": concept.class_word}[name])
    except KeyError as e:
        field = str(e.args[0])
        fix = suggest(field, FIELDS) or "the fields are {identifier} and {class}"
        raise Usage(f"--caption has an unknown field {{{field}}}", fix=fix) from None
    except ValueError as e:
        raise Usage(f"--caption {template!r} cannot be read", why=str(e)) from None
    return " ".join("".join(parts).split())


def edit(caption: str, prefix: str, suffix: str, replace: Sequence[tuple[str, str]]) -> str:
    """Replacements first, in order; then what is added to every caption."""
    for old, new in replace:
        caption = caption.replace(old, new)
    return " ".join(f"{prefix}{caption}{suffix}".split())


def replacements(rules: Sequence[str]) -> list[tuple[str, str]]:
    """ "old=>new" rules as pairs; Usage for one without the arrow or without anything to find."""
    pairs = []
    for rule in rules:
        old, arrow, new = rule.partition("=>")
        if not arrow or not old:
            raise Usage(f"--caption-replace {rule!r} cannot be read", fix="write 'old=>new'")
        pairs.append((old, new))
    return pairs
