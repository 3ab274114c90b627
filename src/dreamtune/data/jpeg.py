"""JPEG streams without decoding them: drop the metadata, notice a missing end.

ITU-T T.81, annex B. A stream is a list of marker segments; after each start-of-scan segment comes
entropy-coded data that ends at the next marker which is neither a stuffed zero nor a restart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SOI, EOI, SOS, APP0, APP14, COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE, 0xFE
BARE = {0x01, SOI, EOI, *range(0xD0, 0xD8)}  # markers without a length
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


class Broken(Exception):
    """The stream does not follow its own lengths."""


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, bytes with the marker and, for a scan, its data) up to the end of the picture.

    Raises Broken where the stream stops making sense or stops.
    """
    position = 0
    while True:
        while data[position : position + 2] == b"\xff\xff":  # fill bytes
            position += 1
        if len(data) < position + 2 or data[position] != 0xFF:
            raise Broken
        marker = data[position + 1]
        end = position + 2
        if marker not in BARE:
            length = int.from_bytes(data[end : end + 2], "big")
            end += length
            if length < 2 or end > len(data):
                raise Broken
        if marker == SOS:
            found = _NEXT_MARKER.search(data, end)
            if not found:
                raise Broken
            end = found.start()
        yield marker, data[position:end]
        if marker == EOI:
            return
        position = end


def fault(data: bytes) -> tuple[str, str] | None:
    """A stream whose end is missing although decoders would fill it up in silence."""
    filled = len(data) - len(data.rstrip(b"\0"))
    try:
        scans = sum(marker == SOS for marker, _ in segments(data))
    except Broken:
        if filled >= 512:
            return "image.truncated", f"JPEG whose last {filled:,} bytes are zeros"
        return None  # what is left is for the decoder to judge: some cameras write no end marker
    return None if scans else ("image.damaged", "JPEG without any picture data")


def strip(data: bytes) -> bytes | None:
    """The same compressed pixels without EXIF, XMP, ICC, comments, previews and trailers.

    JFIF and Adobe headers stay, since they say how the components are to be read. None for a
    stream that does not follow its own lengths.
    """
    try:
        kept = [body for marker, body in segments(data) if not _is_metadata(marker, body)]
    except Broken:
        return None
    return b"".join(kept)


def _is_metadata(marker: int, body: bytes) -> bool:
    needed = {APP0: b"JFIF\0", APP14: b"Adobe"}
    if marker in needed:
        return not body[4:].startswith(needed[marker])
    return marker == COM or 0xE0 <= marker <= 0xEF
