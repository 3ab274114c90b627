"""Seeing: each kind of trouble on a real file of that kind."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from dreamtune.data import jpeg
from dreamtune.data.photos import TURNS, Photo, Rejected, Seeing, see

from .drawn import encoded, picture

SEEING = Seeing()


def pixels(photo: Photo) -> np.ndarray:
    return np.asarray(photo.image).astype(int)


def refused(data: bytes, seeing: Seeing = SEEING) -> Rejected:
    with pytest.raises(Rejected) as caught:
        see(data, seeing, "x.jpg")
    return caught.value


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def text_bomb() -> bytes:
    image = encoded(picture(1), "PNG")
    text = chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"a" * (80 << 20)))
    return image[:33] + text + image[33:]


def broken_checksum() -> bytes:
    data = bytearray(encoded(picture(1), "PNG"))
    data[data.index(b"IDAT") + 400] ^= 1
    return bytes(data)


JPEG, PNG = encoded(picture(1)), encoded(picture(1), "PNG")

FAULTS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "cut jpeg": (lambda: JPEG[: len(JPEG) * 95 // 100], "image.truncated", ""),
    "cut progressive": (
        lambda: encoded(picture(1), progressive=True)[:-900],
        "image.truncated",
        "",
    ),
    "zero-filled jpeg": (lambda: JPEG[:-2000] + b"\0" * 2000, "image.truncated", "zeros"),
    "jpeg header only": (lambda: JPEG[:300], "image.truncated", ""),
    "cut png": (lambda: PNG[:-300], "image.truncated", ""),
    "png without end": (lambda: PNG[:-12], "image.truncated", ""),
    "png checksum": (broken_checksum, "image.damaged", "IDAT"),
    "cut webp": (lambda: encoded(picture(1), "WEBP")[:-200], "image.truncated", ""),
    "cut gif": (lambda: encoded(picture(1).quantize(), "GIF")[:-2000], "image.truncated", ""),
    "cut bmp": (lambda: encoded(picture(1), "BMP")[:-2000], "image.truncated", ""),
    "cut tiff": (lambda: encoded(picture(1), "TIFF")[:-9000], "image.", ""),
    "cut avif": (lambda: encoded(picture(1), "AVIF")[:-200], "image.", ""),
    "nothing": (lambda: b"", "image.empty", ""),
    "zeros": (lambda: b"\0" * 4096, "image.empty", "zero"),
    "page": (lambda: b"<!DOCTYPE html><html><body>404", "image.type", "HTML"),
    "pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "image.type", "LFS"),
    "placeholder": (lambda: b"bplist00\xd1\x01\x02", "image.type", "iCloud"),
    "svg": (lambda: b'<?xml version="1.0"?><svg xmlns="x"/>', "image.type", "SVG"),
    "pdf": (lambda: b"%PDF-1.7\n", "image.type", "PDF"),
    "photoshop": (lambda: b"8BPS\0\1" + b"\0" * 40, "image.type", "Photoshop"),
    "fits": (lambda: b"SIMPLE  =                    T", "image.type", "FITS"),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "image.type", "PostScript"),
    "metafile": (lambda: b"\xd7\xcd\xc6\x9a" + b"\0" * 30, "image.type", "metafile"),
    "zip": (lambda: b"PK\x03\x04" + b"\0" * 30, "image.type", "ZIP"),
    "video": (lambda: b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "image.type", "video"),
    "jpeg xl": (lambda: b"\xff\x0a" + b"\1" * 40, "image.type", "JPEG XL"),
    "words": (lambda: b"not a photo at all\n", "image.type", "text"),
    "noise": (lambda: bytes(range(1, 256)), "image.type", ""),
    "bomb": (lambda: png_header(60_000, 60_000), "image.too_large", "60000x60000"),
    "text bomb": (text_bomb, "image.bomb", ""),
    "one pixel": (lambda: encoded(Image.new("RGB", (1, 1)), "PNG"), "image.too_small", "1x1"),
    "strip": (lambda: encoded(Image.new("RGB", (5, 4000)), "PNG"), "image.too_small", ""),
    "panorama": (lambda: encoded(picture(1, (900, 100))), "image.aspect", "9.0 to 1"),
    "float": (lambda: encoded(Image.new("F", (90, 90)), "TIFF"), "image.depth", ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name: str) -> None:
    make, code, word = FAULTS[name]
    fault = refused(make())
    assert fault.code.startswith(code)
    assert word in fault.detail


def test_a_bomb_is_refused_before_anything_is_allocated() -> None:
    import tracemalloc

    data = png_header(60_000, 60_000)
    tracemalloc.start()
    refused(data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("format", ["WEBP", "AVIF", "PNG", "BMP", "TIFF", "GIF"])
def test_content_decides_and_not_the_name(format: str) -> None:
    photo = see(encoded(picture(1), format), SEEING, "a.jpg")
    assert photo.image.size == (160, 120)
    assert f"is {format} in spite of its name" in photo.notes


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_ends_upright(turn: int, format: str) -> None:
    upright = picture(3)
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright.transpose(back.get(turn, TURNS[turn])) if turn > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"quality": 95, "exif": exif} if format != "TIFF" else {"tiffinfo": {274: turn}}
    photo = see(encoded(stored, format, **options), SEEING)
    assert photo.size == upright.size == photo.image.size
    assert np.abs(pixels(photo) - np.asarray(upright)).mean() < 12


def test_corrupt_exif_costs_only_the_exif() -> None:
    for exif in (
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0",
        b"Exif\0\0x",
    ):
        assert see(encoded(picture(1), exif=exif), SEEING).image.size == (160, 120)


def test_hidden_colours_never_show() -> None:
    red = Image.new("RGBA", (80, 80), (255, 0, 0, 0))
    palette = Image.new("P", (80, 80), 0)
    palette.putpalette([255, 0, 0] * 256)
    grey = Image.new("LA", (80, 80), (255, 0))
    files = [encoded(red, "PNG"), encoded(palette, "PNG", transparency=0), encoded(grey, "PNG")]
    files += [encoded(red, "WEBP", lossless=True), encoded(palette, "GIF", transparency=0)]
    files += [encoded(Image.new("RGB", (80, 80), (9, 9, 9)), "PNG", transparency=(9, 9, 9))]
    for data in files:
        photo = see(data, SEEING)
        assert (pixels(photo) == 128).all()
        assert any("transparency" in note for note in photo.notes)
    assert (pixels(see(files[0], Seeing(background="white"))) == 255).all()


def test_sixteen_bits_are_scaled() -> None:
    deep = Image.fromarray(np.full((80, 80), 40000, np.uint16))
    for format in ("PNG", "TIFF"):
        assert (pixels(see(encoded(deep, format), SEEING)) == 156).all()


def test_cmyk_and_lab_go_through_their_profiles() -> None:
    lab = ImageCms.profileToProfile(
        picture(1), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    photo = see(encoded(lab, "TIFF"), SEEING)
    assert np.abs(pixels(photo) - np.asarray(picture(1))).mean() < 3
    cmyk = see(encoded(picture(1).convert("CMYK"), quality=95), SEEING)
    assert np.abs(pixels(cmyk) - np.asarray(picture(1))).mean() < 12
    assert cmyk.kept is None


def wide_profile() -> bytes:
    """sRGB's profile with red and green swapped: colours are wrong unless it is applied."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    tags = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = (
        data[green + 4 : green + 12],
        data[red + 4 : red + 12],
    )
    at = struct.unpack(">I", data[tags[b"desc"] + 4 : tags[b"desc"] + 8])[0]
    text = bytes(data[at:]).find("sRGB".encode("utf-16-be"))
    data[at + text : at + text + 8] = "Swap".encode("utf-16-be")
    return bytes(data)


def test_a_profile_is_applied_once() -> None:
    red = Image.new("RGB", (80, 80), (255, 0, 0))
    for format in ("JPEG", "PNG", "WEBP"):
        photo = see(encoded(red, format, icc_profile=wide_profile()), SEEING)
        assert pixels(photo)[40, 40, 1] > 200 > 60 > pixels(photo)[40, 40, 0]
        assert any("colours converted" in note for note in photo.notes)
        again = see(photo.encode()[1], SEEING)
        assert (pixels(again) == pixels(photo)).all()


@pytest.mark.parametrize("icc", [b"not a profile", b"\0" * 200])
def test_an_unreadable_profile_is_ignored(icc: bytes) -> None:
    photo = see(encoded(picture(1), icc_profile=icc), SEEING)
    assert "unreadable colour profile ignored" in photo.notes


def test_one_bit_and_grey() -> None:
    for mode in ("1", "L"):
        photo = see(encoded(picture(1).convert(mode), "PNG"), SEEING)
        assert photo.image.mode == "RGB"
        assert "grey" in photo.notes


def test_the_first_of_several_frames() -> None:
    frames = [picture(seed) for seed in (1, 2, 3)]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        photo = see(data, SEEING)
        assert "first of several frames or pages" in photo.notes
        assert np.abs(pixels(photo) - np.asarray(frames[0])).mean() < 20
        assert refused(data, Seeing(frames="reject")).code == "image.frames"


def test_large_photos_are_scaled_and_small_ones_are_not() -> None:
    seeing = Seeing(max_side=100)
    photo = see(encoded(picture(1, (400, 300))), seeing)
    assert (photo.image.size, photo.size) == ((100, 75), (400, 300))
    assert see(encoded(picture(1, (90, 80))), seeing).image.size == (90, 80)


def test_a_clean_jpeg_keeps_its_stream_and_loses_its_metadata() -> None:
    exif = Image.Exif()
    exif[0x010F] = "Secret Camera"
    exif.get_ifd(0x8825)[1] = "N"
    data = encoded(picture(1), exif=exif, comment=b"home address", quality=90)
    trailer = b"MotionPhoto" * 10
    ending, kept = see(data + trailer, SEEING).encode()
    assert ending == "jpg"
    for secret in (b"Exif", b"Secret", b"home", b"MotionPhoto"):
        assert secret not in kept
    assert (
        np.asarray(Image.open(io.BytesIO(kept))) == np.asarray(Image.open(io.BytesIO(data)))
    ).all()


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}]
)
def test_stripping_keeps_every_pixel(options: dict[str, object]) -> None:
    data = encoded(picture(5, (333, 217)), **options)
    kept = jpeg.strip(data)
    assert kept is not None
    assert (
        np.asarray(Image.open(io.BytesIO(kept))) == np.asarray(Image.open(io.BytesIO(data)))
    ).all()


def test_a_rewritten_photo_has_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Secret Camera"
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "Secret Name")
    for data in (encoded(picture(1), exif=exif), encoded(picture(1), "PNG", pnginfo=info)):
        ending, kept = see(data, SEEING).encode()
        assert ending == "png"
        assert b"Secret" not in kept
        assert not Image.open(io.BytesIO(kept)).info


def test_heic() -> None:
    heif = pytest.importorskip("pillow_heif")
    upright = picture(1)
    buffer = io.BytesIO()
    heif.from_pillow(upright).save(buffer, quality=95)
    photo = see(buffer.getvalue(), SEEING, "IMG_0001.heic")
    assert np.abs(pixels(photo) - np.asarray(upright)).mean() < 12


def test_heic_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamtune.data import kinds

    monkeypatch.setattr(kinds, "has_heif", lambda: False)
    fault = refused(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + b"\0" * 40)
    assert (fault.code, "dreamtune[heic]" in fault.detail) == ("image.heic", True)


def test_bytes_flipped_anywhere_never_escape() -> None:
    rng = np.random.default_rng(0)
    for data in (JPEG, PNG, encoded(picture(1), "WEBP"), encoded(picture(1), "TIFF")):
        for _ in range(60):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), 3):
                broken[at] = rng.integers(0, 256)
            try:
                see(bytes(broken), SEEING)
            except Rejected as fault:
                assert fault.code.startswith("image.")


def test_camera_raw_is_named_and_a_developed_tiff_is_not() -> None:
    preview = {254: 1, 330: (8,), 271: "NIKON CORPORATION"}
    assert refused(encoded(picture(1), "TIFF", tiffinfo=preview)).detail.startswith("camera raw")
    dng = {50706: b"\1\4\0\0"}
    assert refused(encoded(picture(1), "TIFF", tiffinfo=dng)).detail.startswith("camera raw")
    developed = encoded(picture(1), "TIFF", tiffinfo={271: "NIKON CORPORATION"})
    assert see(developed, SEEING).image.size == (160, 120)
