"""`dreamtune base`, and bases from a hub: found, fetched, named, and refused with the way out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dreamtune import bases, cli, families
from dreamtune.bases import catalogue, download, hashes, user
from tests import released
from tests.hub import Hub

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that holds tiny:sd and what repositories hold beside it, and an empty cache."""
    folder = Path(shutil.copytree(saved, tmp_path / "remote"))
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        shutil.copy(file, file.with_suffix(".fp16.safetensors"))
        shutil.copy(file, file.with_suffix(".non_ema.safetensors"))
        file.with_suffix(".bin").write_bytes(b"\x80\x02}q\x00.")
        file.with_suffix(".msgpack").write_bytes(b"flax")
        (folder / part / "openvino_model.xml").write_text("<x/>")
    for name in ("v1-5-pruned.safetensors", "v1-5.ckpt", "safety_checker/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"large")
    index = folder / "model_index.json"
    said = json.loads(index.read_text())
    said["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index.write_text(json.dumps(said))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    with Hub(folder).serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


def run(*args: str) -> int:
    return cli.run(["base", *args])


def test_a_repository_is_fetched_once_and_only_what_is_needed(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fetch", "owner/model") == 0
    place = Path(capsys.readouterr().out.strip())
    found = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    weights = {UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"}
    assert {f for f in found if not f.endswith((".json", ".txt"))} == weights
    assert not any("safety_checker" in f for f in found)
    hub.error = (503, "")  # from now on nothing may be asked
    family = families.load("owner/model", torch.float32)
    assert family.base == "owner/model"
    tiny = families.load("tiny:sd", torch.float32)
    assert torch.equal(family.denoiser.conv_in.weight, tiny.denoiser.conv_in.weight)
    assert run("list") == 0
    assert "owner/model" in capsys.readouterr().out.splitlines()


def test_a_dry_run_fetches_and_names_nothing(
    hub: Hub, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fetch", "owner/model", "--dry-run") == 0
    assert "would fetch" in capsys.readouterr().err
    assert {file for file, _ in hub.asked} == {"model_index.json"}
    assert run("add", "my-dog", str(saved), "--dry-run") == 0
    assert run("info", "my-dog") == 10
    assert run("remove", "my-dog") == 10


def test_a_download_that_broke_off_goes_on_where_it_stopped(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LARGE", 1000)
    monkeypatch.setattr(download, "CHUNK", 1000)
    half = (hub.folder / UNET).stat().st_size // 2000 * 1000
    hub.cut = {UNET: half}
    assert run("fetch", "owner/model") == 16
    assert "503" in capsys.readouterr().err
    assert run("list") == 0 and run("info", "owner/model") == 16
    hub.error, hub.asked = None, []
    assert run("fetch", "owner/model") == 0
    assert (UNET, half) in hub.asked
    place = Path(capsys.readouterr().out.splitlines()[-1])
    assert (place / UNET).read_bytes() == (hub.folder / UNET).read_bytes()
    assert not [*place.parents[1].rglob("*.incomplete")]


def test_a_download_that_breaks_off_now_and_then_arrives(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LARGE", 1000)
    monkeypatch.setattr(download, "CHUNK", 1000)
    hub.cut, hub.goes_down = {UNET: 5000}, False
    assert run("fetch", "owner/model") == 0
    assert [start for file, start in hub.asked if file == UNET] == [0, 5000]


def test_what_arrives_changed_is_not_kept(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "LARGE", 1000)
    hub.flipped = {UNET}
    assert run("fetch", "owner/model") == 16
    assert "its hash differs" in capsys.readouterr().err
    hub.flipped = set()
    assert run("fetch", "owner/model") == 0


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        ((401, "RepoNotFound"), 16, "no such repository, or it is private"),
        ((403, "GatedRepo"), 16, "accept its licence"),
        ((404, "RevisionNotFound"), 16, "no revision main"),
        ((401, ""), 16, "hf auth login"),
        ((429, ""), 16, "429"),
        ((503, ""), 16, "503"),
    ],
)
def test_what_a_hub_refuses_is_one_line(
    error: tuple[int, str],
    code: int,
    words: str,
    hub: Hub,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.error = error
    assert run("fetch", "owner/model") == code
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "owner/model" in line and words in line


def test_a_gated_base_says_where_to_accept(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.gated = True
    assert run("info", "owner/model") == 0
    assert "openrail; must be accepted" in capsys.readouterr().err
    assert run("fetch", "owner/model") == 16
    assert f"{hub.url}/owner/model" in capsys.readouterr().err


def test_moved_and_missing_things(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fetch", "runwayml/stable-diffusion-v1-5") == 16
    assert "--base sd15" in capsys.readouterr().err
    assert run("fetch", "owner/model@no-such") == 16
    assert "no revision no-such" in capsys.readouterr().err
    (hub.folder / "model_index.json").unlink()
    assert run("fetch", "owner/model") == 10
    assert "not in the diffusers layout" in capsys.readouterr().err


def test_no_connection(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run("fetch", "owner/model") == 16
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
    assert hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert run("fetch", "owner/model") == 16
    assert "cannot be reached" in capsys.readouterr().err


def test_a_full_disk(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(hub.folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert run("fetch", "owner/model") == 15
    assert "1,000 are free" in capsys.readouterr().err
    assert not any("safetensors" in file for file, _ in hub.asked)


def test_a_repository_with_code_is_refused_before_its_weights(hub: Hub) -> None:
    index = hub.folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "unet": ["evil", "Net"]}))
    assert run("fetch", "owner/model") == 13
    assert hub.asked == [("model_index.json", 0)]


# Names of one's own.


@pytest.fixture
def mine(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "models" / "mine"))


def test_a_folder_of_ones_own_gets_a_name(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add", "my-dog", str(mine)) == 0
    assert capsys.readouterr().out == "my-dog\n"
    assert run("info", "my-dog", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "sd" and facts["path"] == str(mine) and facts["where"] == "yours"
    assert facts["resolution"] == 64 and facts["memory"]["lora"] > 0
    assert run("list", "--json") == 0
    listed = {b["name"]: b for b in json.loads(capsys.readouterr().out)}
    assert listed["my-dog"]["where"] == "yours" and listed["mini"]["where"] == "built in"
    assert bases.find("my-dog").fingerprint() == bases.find(str(mine)).fingerprint()


def test_a_base_that_changed_or_went_is_noticed(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("add", "my-dog", str(mine)) == 0
    tensors = load_file(mine / UNET)
    tensors["conv_in.bias"] += 1
    save_file(tensors, mine / UNET, {"format": "pt"})
    assert run("info", "my-dog") == 12
    assert "my-dog has changed since it was added" in capsys.readouterr().err
    assert run("add", "my-dog", str(mine)) == 17
    assert run("add", "my-dog", str(mine), "--force") == 0
    assert run("info", "my-dog") == 0
    mine.rename(tmp_path / "elsewhere")
    assert run("info", "my-dog") == 10
    assert "dreamtune base add my-dog PATH" in capsys.readouterr().err
    assert run("add", "my-dog", str(tmp_path / "elsewhere")) == 0  # the same base, moved
    assert run("remove", "my-dog") == 0
    assert run("info", "my-dog") == 10


@pytest.mark.parametrize("name", ["mini", "sd15", "tiny:sd", "a/b", "../x", "", "-x"])
def test_names_that_cannot_be(name: str, mine: Path) -> None:
    assert run("add", "--", name, str(mine)) == 2


def test_an_unknown_name_gets_the_nearest(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("add", "my-dog", str(mine)) == 0
    for near, name in (("my-dgo", "my-dog"), ("sdlx", "sdxl"), ("flux-def", "flux-dev")):
        assert run("info", near) == 10
        assert f"did you mean {name!r}?" in capsys.readouterr().err


def test_hashes_are_remembered_and_changes_are_noticed(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "RACY", -1e9)  # these files are new
    base = bases.find(str(mine))
    before = base.fingerprint()
    monkeypatch.setattr("dreamtune.fsops.hash_file", lambda path: pytest.fail("hashed again"))
    assert bases.find(str(mine)).fingerprint() == before
    monkeypatch.undo()
    stat = (mine / UNET).stat()
    data = bytearray((mine / UNET).read_bytes())
    data[-1] ^= 1
    (mine / UNET).write_bytes(data)
    os.utime(mine / UNET, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time say nothing
    assert bases.find(str(mine)).fingerprint() != before


def test_a_home_that_cannot_be_written_costs_time_only(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/nowhere")
    monkeypatch.setattr(hashes, "RACY", -1e9)
    assert bases.find(str(mine)).fingerprint() == bases.find(str(mine)).fingerprint()
    assert run("add", "my-dog", str(mine)) == 15
    assert "XDG_DATA_HOME" in capsys.readouterr().err


def test_a_broken_list_of_names_is_an_empty_one(mine: Path) -> None:
    file = user.data_file("bases.json")
    file.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"named": 3}', '{"named": {"x": 4}, "used": []}'):
        file.write_text(text)
        assert run("list") == 0
    assert run("add", "my-dog", str(mine)) == 0
    assert run("info", "my-dog") == 0


def test_every_known_base_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    for name, known in catalogue.KNOWN.items():
        assert run("info", name, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["repo"] == known.repo and len(facts["revision"]) == 40
        assert facts["memory"]["lora"] < facts["memory"]["dreambooth"] and facts["size"] > 4e9
        assert facts["family"] in families_there()


def families_there() -> list[str]:
    from dreamtune import plugins

    return plugins.names("dreamtune.families")


def test_a_single_file_has_facts_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = released.single_file("sdxl", tmp_path / "xl.safetensors")
    assert run("info", str(file), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "sdxl" and facts["resolution"] == 1024 and facts["name"] == "xl"
    source = released.pipeline("sdxl")
    counted = sum(p.numel() for p in source.unet.parameters())
    assert facts["parameters"]["denoiser"] == counted
