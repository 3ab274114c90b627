"""PNG chunks without decoding them: Pillow reads past wrong checksums and missing ends."""

from __future__ import annotations

from zlib import crc32


def fault(data: bytes) -> tuple[str, str] | None:
    """(code, detail) of a PNG that is cut short or whose checksums are wrong, else None."""
    position = 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        end = position + 12 + length
        if end > len(data):
            break
        name = data[position + 4 : position + 8]
        stored = int.from_bytes(data[end - 4 : end], "big")
        if crc32(memoryview(data)[position + 4 : end - 4]) != stored:
            return "image.damaged", f"PNG with a wrong checksum in {name!r}"
        if name == b"IEND":
            return None
        position = end
    return "image.truncated", f"PNG ends after {len(data):,} bytes without its last chunk"
