"""Text files of unknown encoding, and text that is fit to be a caption."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

from ..errors import Usage
from .examine import read as read_bytes
from .photos import Rejected

MOST = 64 << 20  # bytes of a metadata file
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
KANA = re.compile("[\u3041-\u30ff]")
CYRILLIC = re.compile("[\u0400-\u04ff]")
# GB 2312, the characters that are in use: rows 16 to 55 hold the common ones.
COMMON_CHINESE = re.compile(rb"(?:[\xb0-\xd7][\xa1-\xfe])")
UNWANTED = {"Cc", "Cf", "Cs", "Co", "Cn"}
JOINERS = "\u200c\u200d"  # they shape letters and emoji


def read(path: Path, name: str) -> str:
    """A file as text; Usage for one that cannot be read or is no text. Newlines become \\n."""
    try:
        data = read_bytes(path, MOST)
    except Rejected as fault:
        raise Usage(f"cannot read {name}", why=fault.detail) from None
    text = decode(data)
    if text is None:
        raise Usage(f"{name} is in an unknown encoding", fix="save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode(data: bytes) -> str | None:
    """Bytes as text, by byte order mark, as UTF-8, or by what the bytes look like; None if none."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return _try(data, encoding)
    text = _try(data, "utf-8")
    if text is not None and "\0" not in text:
        return text
    if b"\0" in data:
        return _without_mark(data)
    return _legacy(data)


def clean(text: str) -> str:
    """One line without control characters, terminal escapes or marks that reorder text."""
    text = re.sub("\x1b\\[[0-9;?]*[ -/]*[@-~]", "", text)
    kept = (
        " " if ch.isspace() else ch
        for ch in unicodedata.normalize("NFC", text)
        if ch.isspace() or ch in JOINERS or unicodedata.category(ch) not in UNWANTED
    )
    return " ".join("".join(kept).split())


def _without_mark(data: bytes) -> str | None:
    """UTF-16 without its mark has zeros in every other byte."""
    even, odd = data[::2].count(0), data[1::2].count(0)
    if len(data) % 2 or not max(even, odd):
        return None
    return _try(data, "utf-16-le" if odd >= even else "utf-16-be") if min(even, odd) == 0 else None


def _legacy(data: bytes) -> str | None:
    """Windows-1252, Shift-JIS, GB 18030 or Windows-1251, told apart by their letters."""
    high = [byte for byte in data if byte >= 0x80]
    alone = len(re.findall(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])", data))
    if alone * 2 > len(high):  # a quotation mark or an accent here and there
        return _try(data, "cp1252") or _try(data, "latin-1")
    japanese = _try(data, "cp932")
    if japanese is not None and len(KANA.findall(japanese)) * 5 >= len(japanese.strip()) // 2:
        return japanese
    if 2 * len(COMMON_CHINESE.findall(data)) * 2 > len(high):
        return _try(data, "gb18030")
    russian = _try(data, "cp1251")
    if russian is not None and 2 * len(CYRILLIC.findall(russian)) > len(high):
        return russian
    return japanese if japanese is not None else _try(data, "gb18030")


def _try(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None
