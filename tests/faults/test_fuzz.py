"""Files that others make, or that came out harmed: nothing but a reasoned refusal ever comes back.

Each target starts from files that are right, since noise alone never gets past the first check.
`make faults` tries 20,000 of each; DREAMTUNE_FUZZ=1 draws other ones each time.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamtune import checkpoints, fsops, recipe
from dreamtune.artifacts import Artifact
from dreamtune.bases.folder import Folder, check_config, read_json
from dreamtune.data import dataset, intake, photos, texts
from dreamtune.errors import UserError
from dreamtune.formats import header, infotext, prompts
from dreamtune.settings import Sample, Train
from dreamtune.stages import inspect, lines
from dreamtune.store import Store
from tests.conftest import draw_photo
from tests.faults import EVERYTHING

EXAMPLES = 20_000 if EVERYTHING else 60
Target = Callable[[bytes, Path], object]

# What is done to good bytes, or put in their place.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
ODD = [b"\0", b"\xff", b'"', b"{", b"]", b"\n", b"=", b"-1", b"1e999", b"null", b"../", b"[" * 2000]
PIECES = st.binary(min_size=1, max_size=6) | st.sampled_from(ODD)


@st.composite
def harmed(draw: st.DrawFn, good: tuple[bytes, ...]) -> bytes:
    """One of the good files with a few places overwritten, widened or cut away."""
    data = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(["put", "put", "insert", "cut", "end"]))
        if how == "end":
            del data[at:]
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        else:
            piece = draw(PIECES)
            data[at : at + (len(piece) if how == "put" else 0)] = piece
    return bytes(data)


@st.composite
def retold(draw: st.DrawFn, good: tuple[bytes, ...]) -> bytes:
    """The JSON of a good file, or of one of its lines, with one value in it replaced."""
    texts = [line for file in good for line in _objects(file)]
    whole = [json.loads(draw(st.sampled_from(texts)))]
    holder, key = whole, 0
    while (inside := holder[key]) and isinstance(inside, dict | list) and draw(st.booleans()):
        keys = sorted(inside) if isinstance(inside, dict) else range(len(inside))
        holder, key = inside, draw(st.sampled_from(keys))
    holder[key] = draw(JSON)
    return json.dumps(whole[0]).encode() + b"\n"


def _objects(file: bytes) -> list[str]:
    for pieces in ([file], file.splitlines()):
        with contextlib.suppress(ValueError):
            return [p.decode() for p in pieces if json.loads(p) is not None]
    return []


# What is read, and what a right one is like.


def _written(name: str, read: Callable[[Path], object]) -> Target:
    """A target that reads a file, or the folder that it is in."""

    def target(data: bytes, folder: Path) -> object:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return read(folder / name)

    return target


def _picture(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    draw_photo(1, (24, 20)).save(buffer, format, **options)
    return buffer.getvalue()


@functools.cache
def _pictures() -> tuple[bytes, ...]:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "artist"
    plain = [_picture(f, exif=exif) for f in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")]
    return (*plain, _picture("GIF"), _picture("BMP"), _picture("JPEG", progressive=True))


def _see(data: bytes, folder: Path) -> None:
    with contextlib.suppress(photos.Rejected):
        photos.see(data, photos.Seeing(min_side=8), "a.jpg").encode()


def _prep(data: bytes, folder: Path, name: str) -> object:
    """prep's first look at a folder with this file in it."""
    (folder / "10_sks dog").mkdir(exist_ok=True)
    for photo in ("a.png", "b.png"):
        (folder / "10_sks dog" / photo).touch()
    (folder / "10_sks dog" / name).write_bytes(data)
    return intake.take(folder / "10_sks dog", "[V01]", None, False)


def _dataset_toml(data: bytes, folder: Path) -> object:
    (folder / "10_sks dog").mkdir(exist_ok=True)
    (folder / "10_sks dog" / "a.png").touch()
    (folder / "set.toml").write_bytes(data)
    return intake.take(folder / "set.toml", "[V01]", None, False)


def _journal(data: bytes, folder: Path) -> None:
    (folder / "journal.jsonl").write_bytes(data)
    store = Store(folder)
    fsops.make_folder(folder / "prep" / "rex")
    (
        store.tags(),
        store.in_order(),
        store.journal.unreadable_lines(),
        store.next_version("prep", "rex"),
    )


def _index(path: Path) -> None:
    base = Folder("x", path.parent)
    base.parts, base.pipeline, base.settings, base.fingerprint()


def _line(data: bytes, folder: Path) -> object:
    text = data.decode("utf-8", "surrogateescape")
    return prompts.parse(lines.Line.read(text, Sample()).prompt, ("[V01]",))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


TENSORS = {"lora_unet_a.lora_down.weight": np.ones((2, 4), "f4"), "x.alpha": np.ones((), "f4")}
SAFETENSORS = fsops.dump_safetensors(TENSORS, {"modelspec.title": "x", "ss_network_dim": "2"})
BODY = {"kind": "prep", "name": "rex", "version": "v001", "key": "k", "id": "i", "recipe": {"a": 1}}
BODY |= {"parents": ["p"], "files": {"a": {"size": 1, "sha256": "x"}}, "run": {}, "schema": 1}
MANIFEST = fsops.dump_json({**BODY, "sha256": "x"}).encode()
ENTRY = {"seq": 1, "event": "made", "kind": "prep", "name": "rex", "version": "v001", "id": "i"}
JOURNAL = b"".join(json.dumps(e).encode() + b"\n" for e in (ENTRY, ENTRY | {"tag": "x", "seq": 2}))
SAMPLE = {"file": "images/0.png", "sha256": "x", "size": [9, 9], "caption": "[V01] dog"}
SAMPLES = json.dumps(SAMPLE | {"focus": [0, 0, 1, 1], "weight": 1.0}).encode() + b"\n"
ROWS = b'{"file_name": "a.png", "text": "a dog"}\n{"file_name": "b.png", "prompt": "b"}\n'
RECIPE = recipe.dumps({"train": Train(), "sample": Sample()}).encode()
KOHYA = b"""[general]\ncaption_extension = ".txt"\n[[datasets]]\nresolution = 512
[[datasets.subsets]]\nimage_dir = "10_sks dog"\nclass_tokens = "sks dog"\nnum_repeats = 10\n"""
INDEX = b"""{"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"],
"unet": ["diffusers", "UNet2DConditionModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}"""
CONFIG = b'{"in_channels": 4, "block_out_channels": [32, 64], "act_fn": "silu", "scale": 0.18}'
PARAMETERS = infotext.dump("a [V01] dog", "bad: one", {"Steps": 2, "Size": "64x64", "Model": '"m'})
PROMPTS = b"a (dog:1.2) [V01]:0.6 and ((cat)) BREAK [x] --s 30 --w 64 --h 64 --d 7 --n blurry"

TARGETS: dict[str, tuple[Callable[[], tuple[bytes, ...]], Target]] = {
    "safetensors": (lambda: (SAFETENSORS,), _written("a.safetensors", header.read_header)),
    "inspect": (lambda: (SAFETENSORS,), _written("a.safetensors", lambda p: inspect.run(p, True))),
    "manifest": (lambda: (MANIFEST,), _written("manifest.json", lambda p: Artifact.load(p.parent))),
    "journal": (lambda: (JOURNAL,), _journal),
    "checkpoint note": (
        lambda: (b'{"sha256": "x", "step": 3}\n',),
        _written("c/step-000003.json", lambda p: checkpoints.latest(p.parent)),
    ),
    "samples": (lambda: (SAMPLES,), _written("samples.jsonl", lambda p: dataset.read(p.parent))),
    "recipe": (lambda: (RECIPE,), _written("r.toml", recipe.validate)),
    "kohya dataset": (lambda: (KOHYA,), _dataset_toml),
    "caption": (
        lambda: ("a dög\r\n".encode(), "犬の写真".encode("cp932"), "dog".encode("utf-16")),
        lambda data, folder: texts.clean(texts.decode(data) or ""),
    ),
    "caption file": (lambda: (b'{"text": "a dog"}',), functools.partial(_prep, name="a.json")),
    "metadata.jsonl": (lambda: (ROWS,), functools.partial(_prep, name="metadata.jsonl")),
    "metadata.csv": (
        lambda: (b'file_name,text\na.png,"a, ""dog"""\nb.png,b\n',),
        functools.partial(_prep, name="metadata.csv"),
    ),
    "infotext": (lambda: (PARAMETERS.encode(),), lambda data, folder: infotext.parse(_text(data))),
    "prompt line": (lambda: (PROMPTS,), _line),
    "picture": (_pictures, _see),
    "model index": (lambda: (INDEX,), _written("model_index.json", _index)),
    "model config": (
        lambda: (CONFIG,),
        _written("config.json", lambda p: check_config(read_json(p), str(p), 3)),
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_a_reasoned_refusal(name: str, tmp_path: Path) -> None:
    goods, target = TARGETS[name]
    good = goods()
    for data in good:
        with contextlib.suppress(UserError):
            target(data, tmp_path)
    told = [retold(good)] if any(map(_objects, good)) else []

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=[*HealthCheck], database=None
    )
    @given(st.one_of(harmed(good), *told, st.binary(max_size=60)))
    def tried(data: bytes) -> None:
        with contextlib.suppress(UserError):
            target(data, tmp_path)

    tried()
