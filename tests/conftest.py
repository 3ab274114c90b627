"""No test touches the user's store, home, network or clock; small drawn photos for all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

# Tiny models lose more to waiting threads than they gain; the suite runs in two processes instead.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from dreamtune import fsops
from dreamtune.artifacts import Artifact
from dreamtune.store import Store

# What lands must not depend on luck; DREAMTUNE_FUZZ=1 draws new examples.
settings.register_profile("same", derandomize=not os.environ.get("DREAMTUNE_FUZZ"))
settings.load_profile("same")


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("DREAMTUNE_STORE", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "artifacts")


def draw_photo(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A disc on a gradient, different for each seed. size is (width, height)."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    photo = np.stack([x / width, y / height, (x + y) / (width + height)], -1) * rng.uniform(99, 255)
    inside = (x - rng.uniform(0.3, 0.7) * width) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2
    photo[inside] = rng.uniform(0, 255, 3)
    photo += rng.normal(0, 6, photo.shape)
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8))


@pytest.fixture
def make_prep(store: Store) -> Callable[..., Artifact]:
    """Builds a prep artifact without the filter: make_prep(name="dog", photos=3, …)."""

    def make(
        name: str = "dog", class_word: str = "dog", identifier: str = "[V01]", photos: int = 3
    ) -> Artifact:
        recipe = {"name": name, "class": class_word, "identifier": identifier, "photos": photos}
        key = store.key("prep", 1, recipe, [])
        with store.draft("prep", name, key, recipe, []) as draft:
            images = fsops.make_folder(draft.path / "images")
            lines = [
                _line(images, i, f"a photo of {identifier} {class_word}") for i in range(photos)
            ]
            fsops.write_text(draft.path / "samples.jsonl", "".join(f"{line}\n" for line in lines))
            concept = {"identifier": identifier, "class_word": class_word, "kind": "subject"}
            fsops.write_json(draft.path / "concept.json", concept)
            return draft.commit({})

    return make


def _line(folder: Path, number: int, caption: str) -> str:
    path = folder / f"{number:04d}.png"
    photo = draw_photo(number, (96, 80) if number % 2 else (80, 80))
    photo.save(path)
    facts = {
        "file": f"images/{path.name}",
        "sha256": fsops.hash_file(path),
        "size": photo.size,
        "caption": caption,
        "focus": [0.25, 0.25, 0.75, 0.75],
        "weight": 1.0,
    }
    return json.dumps(facts)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny:sd as a diffusers folder, to be copied and not to be changed."""
    import torch

    from dreamtune import families

    folder = tmp_path_factory.mktemp("base") / "sd"
    families.load("tiny:sd", torch.float32).pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def base(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "base"))
