"""No code from data, no connection, no file elsewhere, no secret and no private fact in any output.

One world in which everything that dreamtune does is done once, on a base in a folder, under an
audit hook, with canaries in the photos, the environment, the paths and the machine's name.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from dreamtune import families, plugins
from tests import forked
from tests.conftest import draw_photo
from tests.faults import audit

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    "HF_TOKEN": "hf_TOKENCANARY",
    "WANDB_API_KEY": "WANDBCANARY",
    "AWS_SECRET_ACCESS_KEY": "AWSCANARY",
    "USER": "USERCANARY",
    "LOGNAME": "USERCANARY",
    "HOSTNAME": "HOSTCANARY",
}
FEW = ["--steps", "2", "--batch", "2", "--variants", "1", "--device", "cpu", "--save-every", "1"]
METHODS = plugins.names("dreamtune.methods")
METADATA = ["EXIFCANARY", "XMPCANARY", "COMMENTCANARY", "TEXTCANARY", "ICCCANARY"]
PRIVATE = ["PATHCANARY", "HOMECANARY", *{*ENVIRONMENT.values()}, *METADATA]


def commands(photos: Path, base: Path) -> Iterator[list[str]]:
    """Everything, once, in an order in which it works."""
    yield ["prep", str(photos), "--class", "dog", "--threshold", "0", "--name", "rex"]
    for method in METHODS:
        yield ["train", "--method", method, "--base", str(base), "--name", method, *FEW]
        one = ["-n", "1", "--steps", "1", "--out", f"{method}.png"]
        yield ["sample", "[V01] dog", "--with", method, *one]
        yield ["log", f"{method}.png"]
    yield from (["list"], ["show", "rex"], ["verify", "--deep"], ["recipe", "dump"])
    yield ["merge", "lora", "--into", str(base), "--out", "merged"]
    yield ["convert", "lora", "--to", "diffusers", "--out", "converted"]
    yield ["resize", "lora", "--rank", "1", "--out", "small.safetensors"]
    yield ["extract", "merged", "--base", str(base), "--rank", "1", "--out", "drawn.safetensors"]
    yield ["inspect", "--deep", "artifacts/adapter/lora/v001/lora.safetensors"]
    yield ["base", "list"]
    yield ["tag", "rex", "best"]
    yield ["rm", f"samples/{METHODS[0]}"]
    yield ["gc", "--days", "0"]
    yield ["doctor"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which it was all done; what was noted is in `audit` beside it."""
    root = tmp_path_factory.mktemp("world")
    folder = root / "PATHCANARY"
    folder.mkdir()
    draw_photos(folder / "photos")
    base = folder / "models" / "base"
    families.load("tiny:sd", torch.float32).pipeline().save_pretrained(base)
    (base / "pipeline.py").write_text("raise SystemExit('code from a model')\n")
    for name in ("HOMECANARY", "tmp"):
        (root / name).mkdir()
    shutil.copytree(folder / "photos", root / "originals")
    prepare = functools.partial(enter, root, folder)
    for args in commands(folder / "photos", base):
        code = forked.run(args, folder, prepare=prepare)
        said = (folder / "stderr").read_text()
        assert code == 0, (args, said)
        for stream in ("stdout", "stderr"):
            with (root / stream).open("ab") as file:
                file.write((folder / stream).read_bytes())
    for left in ("stdout", "stderr"):
        (folder / left).unlink()
    return folder


def enter(root: Path, folder: Path) -> None:
    """In the child: the canaries' environment, and the hook."""
    os.environ.update(ENVIRONMENT)
    os.environ |= {"HOME": str(root / "HOMECANARY"), "TMPDIR": str(root / "tmp")}
    os.environ.pop("HF_HUB_OFFLINE", None)
    os.environ.pop("DREAMTUNE_DEBUG", None)
    socket.gethostname = lambda: "HOSTCANARY"
    platform.node = lambda: "HOSTCANARY"
    audit.install(root / "audit", [folder, root / "HOMECANARY", root / "tmp"])


def draw_photos(folder: Path) -> None:
    """Photos with a camera's, a place's and a person's traces in every part of the file."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x013B] = "EXIFCANARY"  # artist
    exif[0x927C] = b"EXIFCANARY"  # the camera maker's own
    exif.get_ifd(0x8825)[2] = (51.0, 28.0, 38.0)  # where it was taken
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>XMPCANARY</x:xmpmeta>"
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    icc = icc.replace(*(name.encode("utf-16-be") for name in ("sRGB built-in", "ICCCANARY----")))
    assert "ICCCANARY".encode("utf-16-be") in icc
    text = PngInfo()
    text.add_text("Author", "TEXTCANARY")
    text.add_itxt("Comment", "TEXTCANARY", zip=True)
    for n in range(4):
        photo = draw_photo(n, (96, 80))
        photo.save(folder / f"{n}.png", exif=exif, pnginfo=text, icc_profile=icc)
        options: dict[str, Any] = {"exif": exif, "xmp": xmp, "icc_profile": icc, "quality": 95}
        draw_photo(n + 9, (96, 80)).save(folder / f"{n}.jpg", comment=b"COMMENTCANARY", **options)


def outputs(world: Path) -> list[Path]:
    given = {"photos", "models"}
    files = [p for p in world.rglob("*") if p.is_file()]
    files = [p for p in files if p.relative_to(world).parts[0] not in given]
    assert len(files) > 30
    return files


def test_every_command_is_tried(world: Path) -> None:
    tried = {args[0] for args in commands(Path("p"), Path("b"))}
    assert tried == set(plugins.names("dreamtune.commands"))


def test_nothing_happened_that_should_not(world: Path) -> None:
    noted = world.parent / "audit"
    assert noted.read_text() == ""


def test_no_output_says_where_who_or_with_what_secret(world: Path) -> None:
    found = [
        (path.relative_to(world).as_posix(), word)
        for path in outputs(world)
        for data in [path.read_bytes()]
        for word in PRIVATE
        if any(word.encode(code) in data for code in ("utf-8", "utf-16-le", "utf-16-be"))
    ]
    assert found == []


def test_nothing_that_was_said_tells_a_secret(world: Path) -> None:
    for stream in ("stdout", "stderr"):
        said = (world.parent / stream).read_text()
        assert said and not [word for word in ENVIRONMENT.values() if word in said]


def test_pictures_carry_nothing_of_the_photos(world: Path) -> None:
    pictures = [p for p in outputs(world) if p.suffix in (".png", ".jpg")]
    assert len(pictures) > 8
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert not picture.getexif(), path
            known = {"parameters", "jfif", "jfif_version", "jfif_unit", "jfif_density"}
            assert picture.info.keys() <= known, (path, picture.info.keys())


def test_the_photos_were_not_touched(world: Path) -> None:
    for path in (world.parent / "originals").iterdir():
        assert path.read_bytes() == (world / "photos" / path.name).read_bytes()


class Payload:
    """A pickle that leaves a file behind when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("TAKEN"),))


def pickled_weights(base: Path) -> None:
    (base / UNET).write_bytes(pickle.dumps(Payload()))


def torch_weights(base: Path) -> None:
    (base / UNET).unlink()
    torch.save(Payload(), base / UNET.replace("safetensors", "bin"))


def foreign_class(base: Path) -> None:
    (base / "evil.py").write_text("import os; os.system('touch TAKEN')\n")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"unet": ["evil", "Model"]}))


def foreign_pipeline(base: Path) -> None:
    (base / "pipeline.py").write_text("import os; os.system('touch TAKEN')\n")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"_class_name": ["pipeline", "P"]}))


def remote_kernel(base: Path) -> None:
    file = base / "text_encoder" / "config.json"
    config = json.loads(file.read_text()) | {"_attn_implementation_internal": "owner/kernel"}
    file.write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))


UNET = "unet/diffusion_pytorch_model.safetensors"
HOSTILE = [pickled_weights, torch_weights, foreign_class, foreign_pipeline, remote_kernel]


@pytest.mark.parametrize("harm", HOSTILE)
def test_a_hostile_base_runs_nothing(harm: Callable[[Path], None], world: Path) -> None:
    base = Path(shutil.copytree(world / "models/base", world / "models" / harm.__name__))
    harm(base)
    prepare = functools.partial(enter, world.parent, world)
    noted = (world.parent / "audit").read_text()
    for command in (["train", *FEW], ["sample", "a dog", "--with", "none", "--steps", "1"]):
        code = forked.run([*command, "--base", str(base)], world, prepare=prepare)
        said = (world / "stderr").read_text()
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert code in (12, 13) and len(errors) == 1, (command[0], said)
        assert said.endswith(f"{errors[0]}\n")
    assert (world.parent / "audit").read_text() == noted
    assert not list(world.rglob("TAKEN"))


# The hook itself.


def planted(report: Path, folder: Path) -> None:
    """What the hook must note, done in a child. Each is a line of `report`."""
    import pickle
    import subprocess
    import urllib.request

    audit.install(report, [folder])
    pickle.loads(pickle.dumps(ValueError("x")))
    (folder / "model.py").write_text("x = 1\n")
    exec(compile((folder / "model.py").read_text(), str(folder / "model.py"), "exec"))
    subprocess.run(["true"], check=True)
    (folder.parent / "elsewhere").write_text("x")
    (folder / "here").write_text("x")
    os.rename(folder / "here", folder.parent / "there")  # noqa: PTH104
    with socket.socket() as s:
        s.connect_ex(("127.0.0.1", 9))
    with contextlib.suppress(OSError):
        urllib.request.urlopen("http://127.0.0.1:9/", timeout=1)


def test_the_hook_sees_what_it_is_there_for(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    work = functools.partial(planted, tmp_path / "audit", tmp_path / "inside")
    assert forked.run(["--version"], tmp_path, prepare=work) == 0, (tmp_path / "stderr").read_text()
    events = [line.split(":")[0] for line in (tmp_path / "audit").read_text().splitlines()]
    for event in ("pickle.find_class", "compile", "exec", "subprocess.Popen", "os.rename",
                  "socket.connect", "urllib.Request"):  # fmt: skip
        assert event in events, event
    assert events.count("open") == 1 + events.count("os.rename") - 1  # elsewhere, and not here
