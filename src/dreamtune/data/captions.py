"""What each photo is said to show: from a file beside it, an outside captioner, or a template."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import Usage, suggest

# For styles those of textual inversion (arXiv:2208.01618, supplement) that are true of any picture:
# several, in turn, so that what they share, the style, is what the new word comes to mean.
TEMPLATES = {
    "subject": ("a photo of {identifier} {class}",),
    "style": (
        "a {class} in the style of {identifier}",
        "a rendering in the style of {identifier}",
        "the {class} in the style of {identifier}",
        "a picture in the style of {identifier}",
        "a good {class} in the style of {identifier}",
        "a rendition in the style of {identifier}",
        "a nice {class} in the style of {identifier}",
    ),
}
FIELDS = ("identifier", "class")
LONG = 50  # words; CLIP's text encoders read 77 tokens, which is about that many


@dataclass(frozen=True)
class Concept:
    """identifier: as typed, such as "[V01]"; class_word: what kind of thing it is."""

    identifier: str
    class_word: str
    kind: str = "subject"


@dataclass(frozen=True)
class Wording:
    """How captions are made.

    templates: with {identifier} and {class}, for photos in turn; missing: "error", "template" or
    "empty", for photos without a caption among photos that have one; prefix, suffix, replace: edits
    to every caption
    """

    templates: Sequence[str]
    missing: str = "error"
    prefix: str = ""
    suffix: str = ""
    replace: Sequence[tuple[str, str]] = ()


def compose(
    photos: Sequence[str],
    given: Mapping[str, str],
    concepts: Mapping[str, Concept],
    wording: Wording,
    describe: Callable[[Sequence[str]], Mapping[str, str]] | None = None,
) -> dict[str, str]:
    """Photo -> caption.

    given: captions that were found; concepts: of each photo; describe: an outside captioner, asked
    about photos without a caption, whose words follow the template's
    """
    without = [photo for photo in photos if photo not in given]
    if len(without) < len(photos) and without and wording.missing == "error" and not describe:
        some = ", ".join(without[:3]) + (" …" if len(without) > 3 else "")
        raise Usage(
            f"{len(without)} of {len(photos)} photos have no caption ({some})",
            fix="write them, or choose --caption-missing template or empty",
        )
    described = describe(without) if describe and without else {}
    captions = {}
    for i, photo in enumerate(photos):
        if photo in given:
            caption = given[photo]
        elif len(without) < len(photos) and wording.missing == "empty" and photo not in described:
            caption = ""
        else:
            caption = fill(wording.templates[i % len(wording.templates)], concepts[photo])
            caption += f", {described[photo]}" if described.get(photo) else ""
        captions[photo] = edit(caption, wording)
    return captions


def doubts(captions: Mapping[str, str], identifier: str) -> list[str]:
    """What is probably not meant, in words; empty when nothing is."""
    found = []
    without = sum(identifier not in caption for caption in captions.values())
    if without == len(captions):
        found.append(
            f"no caption has {identifier}, so nothing would be learned under that name; "
            f"add it with --caption-prefix '{identifier} ' or --caption-replace 'old=>{identifier}'"
        )
    elif without:
        found.append(f"{without} of {len(captions)} captions do not have {identifier}")
    long = sum(len(caption.split()) > LONG for caption in captions.values())
    if long:
        found.append(f"{long} captions have more than {LONG} words; encoders read the beginning")
    return found


def fill(template: str, concept: Concept) -> str:
    """The template with {identifier} and {class} replaced; Usage for another {field}."""
    values = {"identifier": concept.identifier, "class": concept.class_word}
    parts = []
    try:
        for text, name, _, _ in string.Formatter().parse(template):
            parts.append(text)
            if name is not None:
                parts.append(values[name])
    except KeyError as e:
        field = str(e.args[0])
        fix = suggest(field, FIELDS) or "the fields are {identifier} and {class}"
        raise Usage(f"--caption has an unknown field {{{field}}}", fix=fix) from None
    except ValueError as e:
        raise Usage(f"--caption {template!r} cannot be read", why=str(e)) from None
    return " ".join("".join(parts).split())


def edit(caption: str, wording: Wording) -> str:
    """Replacements first, in order; then what is added to every caption."""
    for old, new in wording.replace:
        caption = caption.replace(old, new)
    return " ".join(f"{wording.prefix}{caption}{wording.suffix}".split())


def replacements(rules: Sequence[str]) -> list[tuple[str, str]]:
    """ "old=>new" rules as pairs; Usage for one without the arrow or without anything to find."""
    pairs = []
    for rule in rules:
        old, arrow, new = rule.partition("=>")
        if not arrow or not old:
            raise Usage(f"--caption-replace {rule!r} cannot be read", fix="write 'old=>new'")
        pairs.append((old, new))
    return pairs
