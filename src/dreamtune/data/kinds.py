"""What a file is, by its first bytes: an allowed picture format, or the name of something else.

The formats that have a decoder here are the allow list; everything else is refused by name, since
"cannot identify image file" does not tell anybody that a download gave an error page.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.util import find_spec

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
PICTURE_EXTENSIONS = frozenset(e for names in EXTENSIONS.values() for e in names)

AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}
RAW = "camera raw; export it as JPEG, PNG or TIFF"

# (first bytes, what it is) of what people find in photo folders and cannot train on.
OTHERS = (
    (b"version https://git-lfs", "Git LFS pointer, not the picture; run git lfs pull"),
    (b"bplist00", "property list, perhaps an iCloud placeholder; download the original"),
    (b"%PDF", "PDF document"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"8BPS", "Photoshop document; export it as PNG"),
    (b"gimp xcf", "GIMP document; export it as PNG"),
    (b"SIMPLE  =", "FITS image"),
    (b"\xd7\xcd\xc6\x9a", "Windows metafile"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000; export it as JPEG or PNG"),
    (b"\xff\x4f\xff\x51", "JPEG 2000; export it as JPEG or PNG"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL; export it as JPEG or PNG"),
    (b"\xff\x0a", "JPEG XL; export it as JPEG or PNG"),
    (b"\x00\x00\x01\x00", "icon"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"PK\x05\x06", "ZIP archive"),
    (b"Rar!", "RAR archive"),
    (b"7z\xbc\xaf", "7-Zip archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"\x1a\x45\xdf\xa3", "Matroska or WebM video"),
    (b"FUJIFILMCCD-RAW", RAW),
    (b"IIU\x00", RAW),
    (b"\x7fELF", "program"),
    (b"MZ", "program"),
    (b"\x80\x02", "pickle"),
    (b"\x80\x04", "pickle"),
)


@dataclass(frozen=True)
class Kind:
    """`format` is Pillow's name for it, or None with the code and words for a refusal."""

    format: str | None
    code: str = ""
    detail: str = ""

    def fits(self, name: str) -> bool:
        """Whether a file name ends as this format's names do; other endings say nothing."""
        ending = "." + name.rsplit(".", 1)[-1].lower()
        expected = EXTENSIONS.get(self.format or "", ())
        return ending in expected or ending not in PICTURE_EXTENSIONS


def sniff(data: bytes) -> Kind:
    """Decide by content alone."""
    if not data:
        return Kind(None, "image.empty", "no bytes at all")
    if not data.strip(b"\0"):
        return Kind(None, "image.empty", f"{len(data):,} zero bytes and nothing else")
    format = _picture(data)
    if format == "HEIF" and not has_heif():
        install = "HEIC needs an extra: pip install 'dreamtune[heic]'"
        return Kind(None, "image.heic", install)
    if format is not None:
        return Kind(format)
    return Kind(None, "image.type", _other(data))


@functools.cache
def has_heif() -> bool:
    """Whether the extra that reads HEIC is installed."""
    return find_spec("pillow_heif") is not None


def riff_fault(data: bytes) -> tuple[str, str] | None:
    """A WebP that is shorter than its header says."""
    expected = int.from_bytes(data[4:8], "little") + 8
    if len(data) < expected:
        return "image.truncated", f"WEBP has {len(data):,} of {expected:,} bytes"
    return None


def _picture(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and data[6:10] == b"\0\0\0\0":
        return "BMP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return None if data[8:10] == b"CR" else "TIFF"  # Canon's raw files say so
    if data[4:8] == b"ftyp":
        return _boxed(data)
    return None


def _boxed(data: bytes) -> str | None:
    """AVIF or HEIF among the many things that begin with an ISO media `ftyp` box."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, size, 4))]
    if any(b in AVIF_BRANDS for b in brands):
        return "AVIF"
    if any(b in HEIF_BRANDS for b in brands):
        return "HEIF"
    return None


def _other(data: bytes) -> str:
    """Words for something that is no picture that can be used."""
    for start, what in OTHERS:
        if data.startswith(start):
            return what
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return "video; export the frames you want as pictures"
    if data[:4] == b"RIFF":
        return "RIFF file (AVI video or sound)"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return RAW
    return _text(data[:4096])


def _text(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML page; the download probably failed"
    if b"<svg" in start:
        return "SVG drawing; export it as PNG"
    if start.startswith(b"<?xml"):
        return "XML text"
    if start.startswith((b"{", b"[")) and b"\0" not in head:
        return "JSON text"
    control = sum(byte < 9 or 13 < byte < 32 for byte in head)
    return "text" if control == 0 else "not a picture that is known here"
