"""Seeing a photo: bytes of any camera, phone or web page to upright sRGB pixels, or a reason.

A file is what its first bytes say, whatever its name. Only the formats listed here are ever
decoded, a size that cannot be right is refused from the header, and half a picture is never
completed with grey. What was done to a photo that is kept is written down in its `notes`.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from . import jpeg, kinds, png

BACKGROUNDS = {"grey": (128, 128, 128), "white": (255, 255, 255), "black": (0, 0, 0)}
DEEP = {"I;16", "I;16L", "I;16B", "I;16N"}
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
NEW_SUBFILE_TYPE, SUB_IFDS, DNG_VERSION = 254, 330, 50706  # TIFF tags
SIDEWAYS = {5, 6, 7, 8}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Rejected(Exception):
    """A photo that cannot be used: a code such as `image.truncated`, and what was seen."""

    def __init__(self, code: str, detail: str) -> None:
        self.code, self.detail = code, detail
        super().__init__(f"{code}: {detail}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return Rejected, (self.code, self.detail)  # it comes back from worker processes


@dataclass(frozen=True)
class Seeing:
    """How photos are looked at.

    max_side:   the long side in pixels; larger photos are scaled down
    max_pixels: width times height above which a file is refused from its header
    min_side:   the short side in pixels below which a photo is refused
    max_aspect: long side over short side above which a photo is refused
    background: what shows through transparency, a key of BACKGROUNDS
    frames:     "first" takes the first of several pictures, "reject" refuses the file
    """

    max_side: int = 2048
    max_pixels: int = 100_000_000
    min_side: int = 64
    max_aspect: float = 4.0
    background: str = "grey"
    frames: str = "first"


@dataclass
class Photo:
    """An upright sRGB picture, and the bytes to keep it in.

    size:   of the file as it came, upright, before any scaling
    notes:  what was changed or noticed, in words
    kept:   the original JPEG stream without its metadata, when its pixels needed no change
    """

    image: Image.Image
    size: tuple[int, int]
    notes: list[str] = field(default_factory=list)
    kept: bytes | None = None

    def encode(self) -> tuple[str, bytes]:
        """(file extension, bytes) without metadata: the original JPEG stream, or lossless PNG."""
        if self.kept is not None:
            return "jpg", self.kept
        buffer = io.BytesIO()
        self.image.info = {}  # a colour profile says who made it, or when it was converted to
        self.image.save(buffer, "PNG", compress_level=1)
        return "png", buffer.getvalue()


def see(data: bytes, seeing: Seeing, name: str = "") -> Photo:
    """Decode one file completely. Raises Rejected; `name` only serves the notes."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            photo = _see(data, seeing, notes, name)
        except MemoryError:
            raise Rejected("image.memory", "needs more memory than one photo may take") from None
    if any("exif" in str(w.message).lower() or "metadata" in str(w.message).lower() for w in said):
        notes.append("damaged EXIF ignored")
    return photo


def _see(data: bytes, seeing: Seeing, notes: list[str], name: str) -> Photo:
    kind = kinds.sniff(data)
    if kind.format is None:
        raise Rejected(kind.code, kind.detail)
    if name and not kind.fits(name):
        notes.append(f"is {kind.format} in spite of its name")
    check_stream(kind.format, data)
    image = _open(data, kind.format)
    if kind.format == "TIFF":
        _refuse_raw(image)
    original = image.size
    check_size(original, seeing)
    _choose_frame(image, seeing.frames, notes)
    if kind.format == "JPEG":
        image.draft(None, (seeing.max_side, seeing.max_side))  # scaled decoding: less memory
    _load(image)
    turn = _orientation(image, notes)
    if turn in SIDEWAYS and kind.format != "TIFF":  # Pillow turns a TIFF, and its size, by itself
        original = original[::-1]
    upright, same_pixels = to_srgb(image, seeing.background, notes)
    if turn != 1:
        upright = upright.transpose(TURNS[turn])
        notes.append("turned upright")
    if max(upright.size) > seeing.max_side:
        upright.thumbnail((seeing.max_side, seeing.max_side), Image.Resampling.LANCZOS)
    if upright.size != original:
        notes.append(f"scaled down from {original[0]}x{original[1]}")
    keep = kind.format == "JPEG" and same_pixels and turn == 1 and upright.size == original
    return Photo(upright, original, notes, jpeg.strip(data) if keep else None)


def check_stream(format: str, data: bytes) -> None:
    """What Pillow does not check: PNG checksums, and ends that are missing or zero-filled."""
    fault = {"JPEG": jpeg.fault, "PNG": png.fault, "WEBP": kinds.riff_fault}.get(format)
    found = fault(data) if fault else None
    if found:
        raise Rejected(*found)


def check_size(size: tuple[int, int], seeing: Seeing) -> None:
    """Refuse, from the header, what is too large, too small or too long."""
    width, height = size
    short, long = min(size), max(size)
    if width * height > seeing.max_pixels:
        limit = f"more than the {seeing.max_pixels / 1e6:g} megapixels allowed"
        raise Rejected("image.too_large", f"{width}x{height}, {limit}")
    if short < seeing.min_side:
        raise Rejected("image.too_small", f"{width}x{height}, short side under {seeing.min_side}")
    if long > seeing.max_aspect * short:
        ratio = f"{long / short:.1f} to 1, more than {seeing.max_aspect:g} to 1"
        raise Rejected("image.aspect", f"{width}x{height} is {ratio}")


def _open(data: bytes, format: str) -> Image.Image:
    """Read the header with the one decoder that the first bytes ask for."""
    formats = ["JPEG", "MPO"] if format == "JPEG" else [format]
    if format == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # check_size has a lower one
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise Rejected("image.damaged", f"a {format} header that cannot be read") from None
    except Exception as e:  # decoders raise anything on hostile bytes
        raise _fault(e, format) from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _refuse_raw(image: Image.Image) -> None:
    """Camera raw files are TIFFs whose first picture is a small preview."""
    tags = getattr(image, "tag_v2", {})
    preview = tags.get(NEW_SUBFILE_TYPE) == 1 and SUB_IFDS in tags
    if preview or DNG_VERSION in tags:
        raise Rejected("image.type", kinds.RAW)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as e:
        raise _fault(e, str(image.format)) from None


def _fault(error: Exception, format: str) -> Rejected:
    """The code for what a decoder said."""
    said = str(error) or type(error).__name__
    words = said.lower()
    if isinstance(error, Image.DecompressionBombError):
        return Rejected("image.too_large", said)
    if "decompressed data too large" in words or ("text" in words and "memory" in words):
        return Rejected("image.bomb", f"compressed text in the {format} expands too far")
    if "not enough data" in words or "truncated" in words or isinstance(error, EOFError):
        return Rejected("image.truncated", f"{format} ends before the picture does")
    return Rejected("image.damaged", f"{format} cannot be decoded ({said})")


def _choose_frame(image: Image.Image, frames: str, notes: list[str]) -> None:
    """The first of several frames or pages, with a note, or a refusal."""
    try:
        several = image.format != "MPO" and getattr(image, "is_animated", False)
        image.seek(0)
    except Exception as e:
        raise _fault(e, str(image.format)) from None
    if several and frames == "reject":
        raise Rejected("image.frames", "has several frames or pages; export the one you want")
    if several:
        notes.append("first of several frames or pages")


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """EXIF orientation 1 to 8; anything that cannot be read or cannot be is 1."""
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # loops, huge counts, wrong types: the pixels are still good
        notes.append("damaged EXIF ignored")
        return 1
    return turn if isinstance(turn, int) and turn in TURNS else 1


def to_srgb(image: Image.Image, background: str, notes: list[str]) -> tuple[Image.Image, bool]:
    """(8-bit sRGB picture, whether its pixels are the decoded ones).

    Order: depth, then profile, then transparency over the background colour, so that the
    background is itself and not what a profile makes of it.
    """
    icc = image.info.get("icc_profile")
    transparent = image.has_transparency_data
    if image.mode in DEEP or image.mode in ("I", "F"):
        image = _to_eight_bits(image, notes)
        same = False
    else:
        same = image.mode in ("RGB", "L") and not transparent
    if image.mode in ("1", "L", "LA", "La"):
        notes.append("grey")
    alpha = None
    if transparent:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode in ("P", "1", "PA", "La", "RGBa"):
        image = image.convert("RGB")
    converted = _apply_profile(image, icc, notes)
    same = same and converted is image
    rgb = converted.convert("RGB")
    if alpha is not None and np.asarray(alpha).min() < 255:
        ground = Image.new("RGB", rgb.size, BACKGROUNDS[background])
        rgb = Image.composite(rgb, ground, alpha)
        notes.append(f"transparency filled with {background}")
    return rgb, same


def _to_eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """16-bit grey scaled (40000 becomes 156), not clipped; floats and 32 bits have no scale."""
    values = np.asarray(image)
    if image.mode == "F" or int(values.max()) > 65535 or int(values.min()) < 0:
        raise Rejected("image.depth", f"pixels of mode {image.mode} have no known white")
    notes.append("16 bits scaled to 8")
    return Image.fromarray(np.rint(values / 257.0).astype(np.uint8))


def _apply_profile(image: Image.Image, icc: bytes | None, notes: list[str]) -> Image.Image:
    """Convert through the embedded ICC profile, unless it is sRGB or cannot be used."""
    if image.mode == "LAB":
        return _convert(image, ImageCms.createProfile("LAB"), notes, "Lab")
    if not icc:
        if image.mode == "CMYK":
            notes.append("CMYK without a profile")
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        name = ImageCms.getProfileDescription(profile)
    except Exception:
        notes.append("unreadable colour profile ignored")
        return image
    if "srgb" in name.lower() and image.mode == "RGB":
        return image
    return _convert(image, profile, notes, "another profile")  # its name may be somebody's


def _convert(image: Image.Image, profile: Any, notes: list[str], name: str) -> Image.Image:
    try:
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, profile, srgb, INTENT, outputMode="RGB")
    except ImageCms.PyCMSError:
        notes.append(f"colour profile does not fit {image.mode} and was ignored")
        return image
    assert converted is not None
    notes.append(f"colours converted from {name}")
    return converted
