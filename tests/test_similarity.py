"""Vectors of photos: the tower, the centre, the scale, copies, the subject box."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from dreamtune.data import duplicates, encoder, focus, quality, similarity, tower
from dreamtune.data.examine import for_tower
from dreamtune.data.similarity import Calibration
from dreamtune.errors import NotFound, Usage

from .drawn import clock, encoded, picture

PLAIN = Calibration(np.zeros(8, np.float32), 0.4)


def cloud(count: int, spread: float, axis: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around one axis of eight."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(0, spread, (count, 8))
    vectors[:, axis] += 1
    return similarity.unit(vectors)


@pytest.mark.slow
def test_the_tower_is_timms() -> None:
    timm = pytest.importorskip("timm")
    import torch
    from safetensors.torch import load_file

    weights = load_file(encoder.ASSETS / encoder.WEIGHTS)
    plain = {k.removeprefix("visual.trunk."): v.float() for k, v in weights.items()}
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    missing = theirs.load_state_dict(plain, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    pixels = torch.from_numpy(np.stack([for_tower(picture(n)) for n in range(2)]))
    with torch.inference_mode():
        expected = theirs.forward_features(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    ours = tower.Tower.read(encoder.ASSETS / encoder.WEIGHTS)(pixels)
    torch.testing.assert_close(ours, expected.permute(0, 2, 3, 1), atol=2e-4, rtol=1e-3)


def test_features_do_not_depend_on_company() -> None:
    encode = encoder.load()
    pixels = np.stack([for_tower(picture(n)) for n in range(6)])
    together, alone = encode(pixels), encode(pixels[4:5])
    assert (together.features[4] == alone.features[0]).all()
    assert (together.heat[4] == alone.heat[0]).all()


def test_the_scale() -> None:
    values = PLAIN.scale(np.array([-1.0, 0.0, 0.2, 0.4, 0.7, 1.0], np.float32))
    assert values == pytest.approx([0, 0, 0.375, 0.75, 0.875, 1])


def test_the_centre_is_the_majoritys() -> None:
    vectors = np.concatenate([cloud(7, 0.2, 0), cloud(4, 0.02, 1), cloud(2, 0.02, 2)])
    values = similarity.similarities(vectors, PLAIN)
    assert (values[:7] > 0.75).all()
    assert (values[7:] < 0.75).all()


def test_no_photo_votes_for_itself() -> None:
    apart = np.eye(4, 8, dtype=np.float32)
    assert similarity.similarities(apart, PLAIN).max() < 0.75
    assert similarity.similarities(apart[:2], PLAIN) == pytest.approx([0, 0])


def test_large_sets_take_the_same_road(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.concatenate([cloud(400, 0.2, 0), cloud(150, 0.2, 1)])
    whole = similarity.similarities(vectors, PLAIN)
    monkeypatch.setattr(similarity, "SAMPLE", 64)
    assert similarity.similarities(vectors, PLAIN) == pytest.approx(whole, abs=0.02)


def test_a_relative_line() -> None:
    values = np.array([0.9, 0.91, 0.92, 0.89, 0.9, 0.4], np.float32)
    assert 0.4 < similarity.relative_line(values) < 0.89


def look(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    encode = encoder.load()
    features = encode(np.stack([for_tower(image) for image in images])).features
    prints = np.stack([quality.fingerprint(quality.small(image)) for image in images])
    return prints, encode.calibration.embed(features)


def test_copies_are_found_and_different_photos_are_not() -> None:
    import io

    first = clock(1)
    worse = Image.open(io.BytesIO(encoded(first.resize((200, 200)), quality=30)))
    copies = [first, worse, first.transpose(0), ImageEnhance.Contrast(first).enhance(1.2)]
    copies += [first.crop((4, 4, 316, 316))]
    others = [clock(n) for n in range(2, 8)]
    worth = [(0.0,)] * 6 + [(2.0,)] + [(1.0,)] * 4
    found = duplicates.copies(*look([*others, *copies]), worth)
    assert found == dict.fromkeys([7, 8, 9, 10], 6)


def test_copies_take_linear_time() -> None:
    rng = np.random.default_rng(0)
    prints = rng.integers(0, 256, (4000, 16, 16)).astype(np.uint8)
    prints[2000:2010] = prints[:10]
    vectors = similarity.unit(rng.normal(size=(4000, 8)))
    vectors[2000:2010] = vectors[:10]
    worth = [(1.0,)] * 4000
    assert duplicates.copies(prints, vectors, worth) == {2000 + n: n for n in range(10)}
    alike = np.repeat(prints[:1], 3000, 0)
    found = duplicates.copies(alike, np.repeat(vectors[:1], 3000, 0), worth)
    assert found == dict.fromkeys(range(1, 3000), 0)


def test_a_film_is_thinned_and_not_emptied() -> None:
    rng = np.random.default_rng(0)
    first, last = rng.normal(128, 40, (2, 16, 16))
    shares = np.linspace(0, 1, 60)[:, None, None]
    prints = np.clip(first * (1 - shares) + last * shares, 0, 255).astype(np.uint8)
    vectors = np.repeat(cloud(1, 0.1, 0), 60, 0)
    found = duplicates.copies(prints, vectors, [(1.0,)] * 60)
    assert 0 not in found
    assert 4 <= 60 - len(found) <= 20


@pytest.mark.parametrize("seed", range(4))
def test_sharpness(seed: int) -> None:
    image = clock(seed)
    sharp = quality.measure(quality.small(image)).sharpness
    soft = quality.measure(quality.small(image.filter(ImageFilter.GaussianBlur(5)))).sharpness
    rows = np.asarray(image, np.float32)
    shaken = Image.fromarray(np.mean([np.roll(rows, k, 1) for k in range(20)], 0).astype(np.uint8))
    assert sharp > 0.15
    assert soft < 0.09
    assert quality.measure(quality.small(shaken)).sharpness < 0.5 * sharp


def test_blank_and_tiny_pictures_can_be_measured() -> None:
    for size in ((300, 200), (1, 1), (3, 900), (64, 64)):
        measured = quality.measure(quality.small(Image.new("RGB", size, "white")))
        assert (measured.flatness, measured.contrast, measured.sharpness) == (1, 0, 0)


def test_the_box_is_around_the_subject() -> None:
    heat = np.zeros((7, 7), np.float32)
    assert focus.box(heat) == (0, 0, 1, 1)
    heat[1:4, 3:6] = 5
    x0, y0, x1, y1 = focus.box(heat)
    assert x0 == pytest.approx(3 / 7, abs=0.12) and x1 == pytest.approx(6 / 7, abs=0.12)
    assert y0 == pytest.approx(1 / 7, abs=0.12) and y1 == pytest.approx(4 / 7, abs=0.12)


def test_unknown_encoders(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("DREAMTUNE_CLIP", str(tmp_path))
    with pytest.raises(NotFound, match=r"image\.safetensors is missing"):
        encoder.load()


@pytest.mark.slow
def test_unknown_open_clip_models() -> None:
    with pytest.raises(Usage, match="did you mean 'ViT-B-32'"):
        encoder.load("ViT-B32:openai")
    with pytest.raises(Usage, match=r"its tags: .*openai"):
        encoder.load("ViT-B-32:nosuch")
