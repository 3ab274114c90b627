"""Names of artifacts, and how people refer to one: rex, rex@v003, rex@step=300@0.8."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from .errors import Usage

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def parse_ref(text: str) -> tuple[str, dict[str, str], float | None]:
    """Split "rex@v003@step=300@0.8" into ("rex@v003", {"step": "300"}, 0.8)."""
    ref, options, weight = text, {}, None
    while "@" in ref and not Path(ref).exists():
        head, _, last = ref.rpartition("@")
        if number(last):
            break
        key, equals, value = last.partition("=")
        if equals and key:
            options[key] = value
        elif weight is None:
            weight = _weight(last, text)
        else:
            raise Usage(f"{text!r} has two weights")
        ref = head
    return ref, options, weight


def _weight(word: str, text: str) -> float:
    if not re.fullmatch(r"-?\d*\.?\d+", word):
        raise Usage(
            f"cannot read @{word} in {text!r}",
            fix="write name, name@v003, name@0.8 or name@step=300",
        )
    return float(word)


def number(label: str) -> int:
    """3 for "v003", 0 for what is no version label."""
    return int(label[1:]) if re.fullmatch(r"v\d{1,200}", label, re.ASCII) else 0


def nfc(text: str) -> str:
    """With each accent composed: disks and keyboards differ in that."""
    return unicodedata.normalize("NFC", text)


def check_name(name: str) -> str:
    """`name`, when it can be a folder anywhere; Usage otherwise."""
    name = nfc(name)
    ok = re.fullmatch(r"\w[\w.+-]*", name) and not name.endswith(".") and len(name.encode()) <= 100
    if not ok or _RESERVED.fullmatch(name):
        raise Usage(
            f"{name[:120]!r} cannot be a name",
            why="a name is 1 to 100 letters, digits and . _ + -, and begins with a letter or digit",
            fix=f"for example {slug(name)!r}",
        )
    return name


def slug(text: str) -> str:
    """A valid name that resembles `text`, such as a folder's name."""
    plain = re.sub(r"[^\w.+-]+", "-", nfc(text)).strip(".+-_")
    plain = plain.encode("utf-8", "ignore")[:60].decode("utf-8", "ignore").rstrip(".")
    return f"{plain}-1" if _RESERVED.fullmatch(plain) else plain or "untitled"
