"""What a prompt says beside its words, in the notation of A1111 and its relatives.

    (word)  ((word))  (word:1.3)    more attention: 1.1 times, 1.21 times, 1.3 times
    [two words]  [(word)]           less: divided by 1.1
    \\(  \\)  \\[  \\]  \\\\              the character itself
    BREAK                           the next words begin a new chunk
    [V01]:0.6                       ours: how strongly a concept shows, 0 to 2

An identifier, one word in square brackets that an adapter in use owns, is never emphasis; any other
bracketed words are. A number right before a closing bracket is the bracket's: "([V01]:0.6)" gives
0.6 of the attention to the whole concept. What A1111 does by time, "[cat:dog:0.5]" and "[cat|dog]",
is refused, since a picture without it would be another one.

modules/prompt_parser.py of AUTOMATIC1111/stable-diffusion-webui (parse_prompt_attention).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping

from dreamtune.errors import Usage

UP, DOWN = 1.1, 1 / 1.1
MOST = 2.0  # strength
Section = list[tuple[str, float]]  # words and their weight

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_SYNTAX = rf"\\[\\()\[\]]|\\|\(|\[|:\s*(?P<weight>{_NUMBER})\s*\)|\)|\]|[^\\()\[\]:]+|:"
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_ESCAPED = re.compile(r"\\[\\()\[\]]")
_INNERMOST = re.compile(r"\[([^\[\]]*)\]")
_AT_A_TIME = re.compile(rf"\||:\s*{_NUMBER}\s*$")
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):([^:<>]*)(:[^<>]*)?>")


def parse(text: str, identifiers: Collection[str] = ()) -> list[Section]:
    """Words with their weights, by section; a section begins at each BREAK.

    identifiers: bracketed words that stand for concepts, such as "[V01]". Usage for notation that
    means something elsewhere and nothing here.
    """
    _refuse(text, identifiers)
    words: list[str | None] = []  # None for BREAK
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        weights[start:] = [weight * factor for weight in weights[start:]]

    for token, weight in _tokens(text, identifiers):
        if token in ("(", "["):
            opened[token].append(len(words))
        elif weight is not None and opened["("]:
            close("(", weight)
        elif token == ")" and opened["("]:
            close("(", UP)
        elif token == "]" and opened["["]:
            close("[", DOWN)
        else:
            words += _parts(token)
            weights += [1.0] * (len(words) - len(weights))
    for bracket, factor in (("(", UP), ("[", DOWN)):  # those never closed
        while opened[bracket]:
            close(bracket, factor)
    return _sections(words, weights)


def strengths(prompt: str, identifiers: Collection[str]) -> tuple[str, dict[str, float]]:
    """The prompt without the marks ":0.6" behind identifiers, and what they say.

    Usage for a strength out of range, or two for one identifier.
    """
    found: dict[str, float] = {}

    def take(match: re.Match[str]) -> str:
        name, strength = match["name"], float(match["strength"])
        if strength > MOST or found.setdefault(name, strength) != strength:
            why = f"it is at most {MOST:g}" if strength > MOST else f"it has {found[name]:g} too"
            raise Usage(f"{name}:{match['strength']} cannot be the strength of {name}", why=why)
        return name

    if not identifiers:
        return prompt, found
    number = r"(?P<strength>\d+(?:\.\d+)?|\.\d+)"
    mark = rf"(?P<name>{_any(identifiers)}):{number}(?![\d.]*\s*\))"
    return re.sub(mark, take, prompt), found


def variants(
    prompt: str, strength: Mapping[str, float], plain: Mapping[str, str]
) -> list[tuple[str, float]]:
    """Prompts with and without each concept, and the share that each has in the picture.

    prompt:   without marks
    strength: of every identifier that is to be mixed; 1 shows it as learned, 0 not at all
    plain:    the word that says what it is without the concept: "[V01] dog" and "[V01]" become
              "dog"

    The shares add up to 1, and a prompt whose share is 0 is left out: for one identifier (1 - s)
    without it and s with it, for several the product of these.
    """
    mixed = [(name, s) for name, s in strength.items() if name in prompt]
    found: dict[str, float] = {}
    for kept in itertools.product((True, False), repeat=len(mixed)):
        text, share = prompt, 1.0
        for (name, s), keep in zip(mixed, kept, strict=True):
            share *= s if keep else 1 - s
            text = text if keep else _without(text, name, plain[name])
        if share:
            found[text] = found.get(text, 0.0) + share
    return list(found.items())


def _without(prompt: str, identifier: str, word: str) -> str:
    """The prompt with the identifier's word in its place, unless that word follows anyway."""
    named = rf"{re.escape(identifier)}\s+(?={re.escape(word)})"
    return re.sub(named, "", prompt, flags=re.IGNORECASE).replace(identifier, word)


def _any(identifiers: Collection[str]) -> str:
    return "|".join(map(re.escape, sorted(identifiers)))


def _tokens(text: str, identifiers: Collection[str]) -> Iterator[tuple[str, float | None]]:
    """Identifiers, brackets, escapes and words, each with the weight that it ends with, if any."""
    pattern = f"{_any(identifiers)}|{_SYNTAX}" if identifiers else _SYNTAX
    for match in re.finditer(pattern, text):
        yield match[0], float(match["weight"]) if match["weight"] else None


def _parts(token: str) -> list[str | None]:
    """The words of a token, None for each BREAK in it; an escape is the character itself."""
    if token.startswith("\\"):
        return [token[1:]]
    parts: list[str | None] = []
    for i, part in enumerate(_BREAK.split(token)):
        parts += [None] if i else []
        parts += [part] if part else []
    return parts


def _sections(words: list[str | None], weights: list[float]) -> list[Section]:
    """Words of one weight joined, and sections at each None."""
    sections: list[Section] = [[]]
    for word, weight in zip(words, weights, strict=True):
        section = sections[-1]
        if word is None:
            sections.append([])
        elif section and section[-1][1] == weight:
            section[-1] = (section[-1][0] + word, weight)
        else:
            section.append((word, weight))
    return [section or [("", 1.0)] for section in sections]


def _refuse(text: str, identifiers: Collection[str]) -> None:
    """Usage for adapters by A1111's name, and for words that change on the way."""
    if network := _NETWORK.search(text):
        weight = f"@{network[2][1:]}" if network[2] else ""
        raise Usage(
            f"{network[0]} in a prompt is not read here", fix=f"--with {network[1]}{weight}"
        )
    text = _ESCAPED.sub("", text)
    text = re.sub(_any(identifiers), "", text) if identifiers else text
    for group in _INNERMOST.finditer(text):
        if _AT_A_TIME.search(group[1]):
            raise Usage(
                f"{group[0]} would change the prompt on the way, which is not offered",
                fix="write \\[ and \\] for the brackets themselves",
            )
