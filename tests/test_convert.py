"""convert, merge, extract and resize: files of small bases and adapters, through the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamtune import bases
from dreamtune.bases.weights import current
from dreamtune.cli import run
from dreamtune.formats import adapters, diffusers, embeddings, kohya, lora, lowrank
from dreamtune.formats.header import body_sha256, read_header
from dreamtune.formats.ldm import Blocks
from dreamtune.formats.lora import Adapter, LoraWeights
from dreamtune.formats.lowrank import Cut
from dreamtune.fsops import write_safetensors
from dreamtune.store import Store
from tests import released, untrained

NAMES = [*released.NAMES]
LAYOUT = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bases as diffusers writes them."""
    home = tmp_path_factory.mktemp("folders")
    for name in NAMES:
        released.pipeline(name).save_pretrained(home / name)
    return {name: home / name for name in NAMES}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same bases as single files, half of the digits."""
    home = tmp_path_factory.mktemp("files")
    half = torch.float16
    return {n: released.single_file(n, home / f"{n}.safetensors", half) for n in NAMES}


def parts(name: str) -> dict[str, Any]:
    pipe = released.pipeline(name)
    found = {part: getattr(pipe, part, None) for part in ("unet", "text_encoder", "text_encoder_2")}
    return {part: module for part, module in found.items() if module is not None}


def adapter(name: str, alpha: float, seed: int = 1, rank: int = 3, dora: bool = False) -> Adapter:
    """Small random changes of every fifth layer of a base."""
    draw = torch.Generator().manual_seed(seed)
    made: Adapter = {}
    for part, module in parts(name).items():
        for path, layer in list(lora.layers(part, module).items())[seed % 5 :: 5]:
            out, *rest = layer.weight.shape
            down = 0.2 * torch.randn(rank, *rest, generator=draw)
            up = 0.2 * torch.randn(out, rank, *[1] * (len(rest) - 1), generator=draw)
            norm = layer.weight.detach().flatten(1).norm(dim=1)
            magnitude = (norm * 1.1).reshape(out, *[1] * len(rest)) if dora else None
            made.setdefault(part, {})[path] = LoraWeights(down, up, alpha, magnitude)
    return made


def saved(path: Path, name: str, mine: Adapter, **extra: Tensor) -> Path:
    blocks = Blocks.of(released.pipeline(name).unet.config)
    tensors, metadata = kohya.dump(mine, LAYOUT[name], blocks)
    write_safetensors(path, tensors | extra, metadata)
    return path


def changes(mine: Adapter, name: str) -> dict[str, Tensor]:
    layers = {part: lora.layers(part, module) for part, module in parts(name).items()}
    return {
        f"{part}.{path}": lora.delta(update, layers[part][path].weight.detach())
        for part, updates in mine.items()
        for path, update in updates.items()
    }


def alike(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert got.keys() == want.keys()
    for module in want:
        assert torch.allclose(got[module], want[module], atol=tolerance), module


def read(path: Path, name: str) -> dict[str, Tensor]:
    """What the adapter in a file or folder changes, with the numbering of a small base."""
    blocks = Blocks.of(released.pipeline(name).unet.config)
    return changes(adapters.read_adapter(path, blocks).adapter, name)


def state(name: str) -> dict[str, Tensor]:
    return {
        f"{part}.{current(key)}": tensor
        for part, module in [*parts(name).items(), ("vae", released.pipeline(name).vae)]
        for key, tensor in module.state_dict().items()
    }


def stored(path: Path) -> dict[str, Tensor]:
    """Every tensor of a base by "part.name", as a base reads it."""
    base: Any = bases.at(path)
    found = [p for p in base.parts if p in ("unet", "vae", "text_encoder", "text_encoder_2")]
    return {f"{p}.{current(n)}": t.read() for p in found for n, t in base.tensors(p).items()}


def ulp(weight: Tensor) -> Tensor:
    """The distance to the next number of half precision."""
    half = weight.half()
    return (
        torch.nextafter(half.float().abs().half(), torch.tensor(65504.0).half()) - half.abs()
    ).float()


# ---- models


@pytest.mark.parametrize("name", NAMES)
def test_folder_to_file_and_back(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    one = tmp_path / "one.safetensors"
    assert run(["convert", str(folders[name]), "--out", str(one)]) == 0
    mine, theirs = load_file(one), load_file(released.single_file(name, tmp_path / "x.safetensors"))
    extra = {k for k in theirs if k.startswith("model_ema") or k == "betas" or "logit_scale" in k}
    spare = {k for k in mine if name == "sd2" and "resblocks.2." in k}  # which 2.x does not use
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert theirs.keys() - extra == mine.keys() - {positions}
    assert (positions in mine) == (name == "sd1"), "SwarmUI knows SD 1.x by it"
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs.keys() - extra - spare)
    assert all(torch.equal(mine[k], theirs[k.replace(".2.", ".1.")]) for k in spare)

    back = tmp_path / "back"
    assert run(["convert", str(one), "--out", str(back)]) == 0
    want = state(name)
    got = {k: v for k, v in stored(back).items() if not k.endswith("position_ids")}
    assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_loads_the_folder(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    import diffusers as library

    assert (
        run(["convert", str(files[name]), "--out", str(tmp_path / "f"), "--precision", "fp32"]) == 0
    )
    pipe = getattr(library, type(released.pipeline(name)).__name__).from_pretrained(
        tmp_path / "f", local_files_only=True
    )
    for part, module in parts(name).items():
        loaded = getattr(pipe, part).state_dict()
        for key, tensor in module.state_dict().items():
            assert torch.equal(loaded[key], tensor.half().float()), key
    assert pipe.tokenizer("a dog").input_ids == released.pipeline(name).tokenizer("a dog").input_ids
    assert pipe.scheduler.config.prediction_type == ("v_prediction" if name == "sd2" else "epsilon")


def test_a_single_file_says_what_it_is(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    outs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for out in outs:
        assert run(["convert", str(folders["sdxl"]), "--out", str(out), "--precision", "fp16"]) == 0
    header = read_header(outs[0])
    assert header.metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert header.metadata["modelspec.date"] == "2023-11-14T22:13:20Z"
    assert header.metadata["modelspec.hash_sha256"] == f"0x{body_sha256(outs[0])}"
    assert {t.dtype for t in header.tensors.values()} == {"F16"}
    assert body_sha256(outs[0]) == body_sha256(outs[1])


def test_nothing_is_overwritten(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(folders["sd1"]), tmp_path / "x.safetensors"
    assert run(["convert", source, "--out", str(out), "--dry-run"]) == 0
    assert not out.exists()
    out.write_text("mine")
    assert run(["convert", source, "--out", str(out)]) == 17
    assert out.read_text() == "mine"
    assert run(["convert", source, "--out", str(out), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.strip())["paths"] == [str(out)]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "photo.jpg").write_text("mine")
    assert run(["convert", source, "--out", str(tmp_path / "home")]) == 17
    assert run(["convert", source, "--out", str(tmp_path / "home"), "--force"]) == 2
    assert run(["convert", source, "--out", str(tmp_path / "no" / "x.safetensors")]) == 10
    assert run(["convert", str(tmp_path / "none"), "--out", str(tmp_path / "y.safetensors")]) == 10
    assert run(["convert", "tiny:sd", "--out", str(tmp_path / "y.safetensors")]) == 2


# ---- adapters


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", NAMES)
def test_any_layout_to_any(name: str, dora: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    mine = adapter(name, 0.7, dora=dora)
    at, want = saved(tmp_path / "rex.safetensors", name, mine), changes(mine, name)
    road = ["diffusers", "peft", "kohya", "peft", "diffusers", "kohya"]
    for i, layout in enumerate(road):
        out = tmp_path / f"{i}" if layout == "peft" else tmp_path / f"{i}.safetensors"
        base = ["--base", str(folders[name])]
        assert run(["convert", str(at), "--to", layout, "--out", str(out), *base]) == 0
        alike(read(out, name), want)
        at = out


def test_dora_for_readers_with_another_rule(folders: dict[str, Path], tmp_path: Path) -> None:
    mine = adapter("sd1", 0.7, dora=True)
    at, out = saved(tmp_path / "rex.safetensors", "sd1", mine), tmp_path / "x.safetensors"
    convert = ["convert", str(at), "--out", str(out), "--dora", "difference"]
    assert run(convert) == 2, "it needs the base"
    assert run([*convert, "--base", str(folders["sd1"])]) == 0
    assert all(key.endswith(".diff") for key in load_file(out))
    alike(read(out, "sd1"), changes(mine, "sd1"))


def test_what_the_source_said_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, 768),
        f"{name}.lora_up.weight": torch.ones(4, 2),
    }
    said = {"ss_steps": "7", "modelspec.trigger_phrase": "sks", "sshs_model_hash": "0", "x": "y"}
    write_safetensors(tmp_path / "a.safetensors", tensors, said)
    out = tmp_path / "b.safetensors"
    assert run(["convert", str(tmp_path / "a.safetensors"), "--out", str(out)]) == 0
    found = read_header(out).metadata
    assert found["ss_steps"] == "7" and found["modelspec.trigger_phrase"] == "sks"
    assert found["sshs_model_hash"] == body_sha256(out) and "x" not in found
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["ss_network_dim"] == "2" and found["modelspec.date"] == "1970-01-01T00:00:00Z"
    assert len(found["sshs_legacy_hash"]) == 8 and found["ss_v2"] == "False"


def test_words_go_along(tmp_path: Path) -> None:
    mine = adapter("sd1", 1.0)
    words = {"bundle_emb.pip.string_to_param.*": torch.randn(2, 64), "<s1>": torch.randn(64)}
    bundled = {k: v for k, v in words.items() if k.startswith("bundle")}
    at = saved(tmp_path / "rex.safetensors", "sd1", mine, **bundled)
    out = tmp_path / "d"
    assert run(["convert", str(at), "--to", "diffusers", "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "learned_embeds.safetensors",
        "pytorch_lora_weights.safetensors",
    ]
    learned = load_file(out / "learned_embeds.safetensors")
    assert torch.equal(learned["pip"], words["bundle_emb.pip.string_to_param.*"])

    save_file({"<s1>": words["<s1>"]}, tmp_path / "s1.safetensors")
    (tmp_path / "ui").mkdir()
    assert run(["convert", str(tmp_path / "s1.safetensors"), "--out", str(tmp_path / "ui")]) == 0
    found = load_file(tmp_path / "ui" / "s1.safetensors")
    assert found.keys() == {"emb_params"} and found["emb_params"].shape == (1, 64)


def test_what_cannot_be_is_refused(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = saved(tmp_path / "rex.safetensors", "sd1", adapter("sd1", 1.0))
    out = ["--out", str(tmp_path / "x.safetensors")]
    assert run(["convert", str(at), *out, "--base", str(folders["sdxl"])]) == 2
    assert "does not fit the base sdxl" in capsys.readouterr().err
    assert run(["convert", str(at), *out, "--to", "koya"]) == 2
    assert "did you mean 'kohya'" in capsys.readouterr().err
    assert run(["convert", str(at), *out, "--to", "peft"]) == 2
    torch.save({}, tmp_path / "old.pt")
    assert run(["convert", str(tmp_path / "old.pt"), *out]) == 13
    tensors = load_file(at)
    name = min(k for k in tensors if k.endswith("lora_down.weight"))
    for value, code in ((float("nan"), 14), (1e30, 0)):
        write_safetensors(at, tensors | {name: torch.full_like(tensors[name], value)})
        assert run(["convert", str(at), *out, "--force"]) == code
    assert run(["convert", str(at), *out, "--force", "--precision", "fp16"]) == 14
    assert "does not fit into fp16" in capsys.readouterr().err


# ---- merge


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", NAMES)
def test_merged_into_a_file(
    name: str,
    dora: bool,
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = adapter(name, 0.7, 1, dora=dora), adapter(name, 5.0, 1, rank=2)
    refs = [
        f"{saved(tmp_path / 'a.safetensors', name, first)}@0.5",
        f"{saved(tmp_path / 'b.safetensors', name, second)}@-1",
    ]
    out = tmp_path / "m.safetensors"
    assert run(["merge", *refs, "--into", str(files[name]), "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    before, after, base = load_file(files[name]), load_file(out), stored(files[name])
    assert after.keys() == before.keys() and "model_ema.decay" in after
    layers = {n: base[f"{n}.weight"].float() for n in changes(first, name)}
    got = stored(out)
    for module, weight in layers.items():
        part, path = module.split(".", 1)
        change = 0.5 * lora.delta(first[part][path], weight)
        if path in second.get(part, {}):
            change -= lora.delta(second[part][path], weight)
        want = (weight + change).half().float()
        assert ((got[f"{module}.weight"].float() - want).abs() <= ulp(want)).all(), module
    same = [k for k in before if torch.equal(before[k], after[k])]
    assert said["tensors"]["kept"] <= len(same)
    assert sum(said["tensors"].values()) == len(before)
    assert {k for k in before if not torch.equal(before[k], after[k])}, "something changed"
    assert "merged_from" in str(read_header(out).metadata)


def test_merged_into_a_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    mine = adapter("sdxl", 0.7)
    at, out = saved(tmp_path / "a.safetensors", "sdxl", mine), tmp_path / "m"
    assert run(["merge", str(at), "--into", str(folders["sdxl"]), "--out", str(out)]) == 0
    before, after = stored(folders["sdxl"]), stored(out)
    want = changes(mine, "sdxl")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        change = want.get(name.removesuffix(".weight"))
        expected = tensor if change is None else tensor + change.reshape(tensor.shape)
        assert torch.equal(after[name], expected), name


def test_words_of_a_merged_adapter_are_beside(folders: dict[str, Path], tmp_path: Path) -> None:
    bundled = embeddings.dump_bundled("pip", {"text_encoder": torch.ones(1, 64)})
    at = saved(tmp_path / "a.safetensors", "sd1", adapter("sd1", 1.0), **bundled)
    out = tmp_path / "m"
    assert run(["merge", str(at), "--into", str(folders["sd1"]), "--out", str(out)]) == 0
    assert load_file(out / "embeddings" / "pip.safetensors").keys() == {"emb_params"}


def test_too_large_for_the_precision(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = adapter("sd1", 1e6)
    at, out = saved(tmp_path / "a.safetensors", "sd1", mine), tmp_path / "m.safetensors"
    merge = ["merge", str(at), "--into", str(files["sd1"]), "--out", str(out)]
    assert run(merge) == 14 and not out.exists()
    assert "does not fit into float16" in capsys.readouterr().err
    assert run([*merge, "--precision", "fp32"]) == 0


def test_together_is_exact(tmp_path: Path) -> None:
    first, second = adapter("sd1", 0.7, 1), adapter("sd1", 5.0, 1, rank=2)
    third = adapter("sd1", 1.0, 2)
    refs = [
        f"{saved(tmp_path / f'{i}.safetensors', 'sd1', mine)}@{weight}"
        for i, (mine, weight) in enumerate([(first, 0.5), (second, -2.0), (third, 1.0)])
    ]
    assert (
        run(["convert", refs[1].partition("@")[0], "--to", "peft", "--out", str(tmp_path / "p")])
        == 0
    )
    refs[1] = f"{tmp_path / 'p'}@-2.0"
    out = tmp_path / "m.safetensors"
    assert run(["merge", *refs, "--out", str(out)]) == 0
    one, two, three = (changes(mine, "sd1") for mine in (first, second, third))
    want = {module: 0.5 * one[module] - 2 * two[module] for module in one} | three
    alike(read(out, "sd1"), want, 1e-5)
    found = adapters.read_adapter(out).adapter["unet"]
    assert {u.rank for u in found.values()} == {5, 3}

    assert run(["merge", *refs, "--out", str(out), "--rank", "2", "--force"]) == 0
    found = adapters.read_adapter(out).adapter["unet"]
    for module, update in found.items():
        values = torch.linalg.svdvals(want[f"unet.{module}"].flatten(1))
        error = torch.linalg.matrix_norm((update.change() - want[f"unet.{module}"]).flatten(1))
        assert update.rank == 2
        assert torch.isclose(error, values[2:].norm(), rtol=1e-3, atol=1e-4), module


def test_together_only_for_one_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {768: tmp_path / "a.safetensors", 2048: tmp_path / "b.safetensors"}
    for width, file in files.items():
        update = LoraWeights(torch.ones(2, width), torch.ones(320, 2), 2.0)
        name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
        write_safetensors(file, *diffusers.dump({"unet": {name: update}}))
    a, b = files.values()
    assert run(["merge", str(a), str(b), "--out", str(tmp_path / "m.safetensors")]) == 2
    assert "for different bases" in capsys.readouterr().err
    dora = saved(tmp_path / "c.safetensors", "sd1", adapter("sd1", 1.0, dora=True))
    assert run(["merge", str(a), str(dora), "--out", str(tmp_path / "m.safetensors")]) == 2
    assert "--base NAME --rank N" in capsys.readouterr().err


# ---- singular values


@pytest.mark.parametrize("shape", [(20, 30), (20, 10, 3, 3)])
def test_resize_is_the_best_of_its_rank(shape: tuple[int, ...]) -> None:
    up = torch.randn(shape[0], 6, *[1] * (len(shape) - 2))
    update = LoraWeights(torch.randn(6, *shape[1:]), up, 2.0)
    change = update.change().flatten(1)
    values = torch.linalg.svdvals(change)
    small, kept = lowrank.truncate(update, Cut(4))
    error = (small.change().flatten(1) - change).norm()
    assert small.rank == 4 and torch.isclose(error, values[4:].norm(), rtol=1e-4)
    assert abs(kept - float(values[:4].square().sum() / values.square().sum())) < 1e-6
    for energy in (0.5, 0.9, 1.0):
        found, kept = lowrank.truncate(update, Cut(energy=energy))
        assert kept >= energy - 1e-9
        assert found.rank == 1 or lowrank.truncate(update, Cut(found.rank - 1))[1] < energy
    whole, kept = lowrank.truncate(update, Cut(64))
    assert whole.rank == 6 and torch.allclose(whole.change(), update.change(), atol=1e-5)
    assert lowrank.truncate(LoraWeights(update.down, 0 * up, 2.0), Cut(2))[0].rank == 2


def test_resize(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = saved(tmp_path / "a.safetensors", "sd1", adapter("sd1", 0.7))
    out = tmp_path / "b.safetensors"
    assert run(["resize", str(at), "--out", str(out)]) == 2
    assert run(["resize", str(at), "--out", str(out), "--rank", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.strip())
    assert 0.3 < said["energy"] < 1
    assert {u.rank for u in adapters.read_adapter(out).adapter["unet"].values()} == {1}


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_extract_gives_back_what_was_merged(
    name: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, base = adapter(name, 0.7), ["--base", str(folders[name])]
    at, tuned = saved(tmp_path / "a.safetensors", name, mine), tmp_path / "tuned.safetensors"
    assert run(["merge", str(at), "--into", str(folders[name]), "--out", str(tuned)]) == 0
    out = tmp_path / "x.safetensors"
    extract = ["extract", str(tuned), "--out", str(out), "--json"]
    assert run(extract) == 2
    capsys.readouterr()
    assert run([*extract, *base, "--rank", "3"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["energy"] > 0.9999 and said["left_out"] == []
    alike(read(out, name), changes(mine, name), 1e-5)
    assert run([*extract, *base, "--rank", "3", "--no-text", "--force"]) == 0
    assert {key.partition("_")[2][:4] for key in load_file(out)} == {"unet"}
    same = ["extract", str(folders[name]), "--out", str(out), "--force", *base]
    assert run(same) == 2, "they do not differ"


def test_extract_says_what_a_lora_cannot_hold(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    tuned = tmp_path / "tuned"
    shutil.copytree(folders["sd1"], tuned)
    file = tuned / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for name in ("conv_in.weight", "conv_in.bias", "conv_norm_out.weight"):
        tensors[name] = tensors[name] + 1
    save_file(tensors, file, {"format": "pt"})
    base = ["--base", str(folders["sd1"])]
    out = ["--out", str(tmp_path / "x.safetensors"), "--json"]
    assert run(["extract", str(tuned), *base, *out]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["left_out"] == ["unet.conv_in.bias", "unet.conv_norm_out.weight"]
    assert run(["extract", str(folders["sdxl"]), *base, *out]) == 2


# ---- what trips others up


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_file_tells_how_noise_is_predicted(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    folder = shutil.copytree(folders[name], tmp_path / "v")
    config = folder / "scheduler" / "scheduler_config.json"
    said = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    config.write_text(json.dumps(json.loads(config.read_text()) | said))
    out = tmp_path / "v.safetensors"
    assert run(["convert", str(folder), "--out", str(out)]) == 0
    assert {"v_pred", "ztsnr"} <= read_header(out).tensors.keys()
    found: Any = bases.at(out)
    assert found.config("scheduler").items() >= said.items()


def test_a_file_of_2_0_without_the_layer_that_is_not_used(tmp_path: Path) -> None:
    """diffusers' converter leaves it out; then all that is there is used."""
    from dreamtune.formats import checkpoint

    text = checkpoint.TWO.text[0]
    layers = {f"{text.prefix}transformer.resblocks.{i}.ln_1.weight": (1024,) for i in range(24)}
    shapes = {f"{text.prefix}ln_final.weight": (1024,), **layers}
    assert checkpoint.used_layers(text, shapes) == 23
    shapes.popitem()
    assert checkpoint.used_layers(text, shapes) == 23


def test_what_programs_would_take_for_another_is_not_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", "mini", "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "programs would take the attention_head_dim" in capsys.readouterr().err


def test_a_folder_is_replaced_whole_or_not_at_all(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    out = shutil.copytree(folders["sd1"], tmp_path / "base")
    (out / "README.md").write_text("mine")
    stale = out / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    stale.write_bytes(b"an old variant")
    before = stored(folders["sd1"])
    huge = saved(tmp_path / "huge.safetensors", "sd1", adapter("sd1", 1e30))
    mine = saved(tmp_path / "a.safetensors", "sd1", adapter("sd1", 0.7))
    into = ["--into", str(out), "--out", str(out)]
    assert run(["merge", str(mine), *into]) == 17
    assert run(["merge", str(huge), *into, "--force", "--precision", "fp16"]) == 14
    assert stale.exists() and [p.name for p in tmp_path.glob(".*")] == []
    assert run(["merge", str(mine), *into, "--force"]) == 0
    assert (out / "README.md").read_text() == "mine" and not stale.exists()
    changed = changes(adapter("sd1", 0.7), "sd1")
    for name, tensor in stored(out).items():
        expected = before[name] + changed.get(name.removesuffix(".weight"), torch.zeros(()))
        assert torch.equal(tensor, expected), name


def test_a_sum_of_flat_factors_and_a_convolution() -> None:
    plain = LoraWeights(torch.randn(2, 4, 3, 3), torch.randn(5, 2, 1, 1), 2.0)
    flat = LoraWeights(torch.randn(3, 36), torch.randn(5, 3), 1.0)
    found = lowrank.concatenate([(flat, 2.0), (plain, -1.0)])
    want = 2 * flat.change().reshape(5, 4, 3, 3) - plain.change()
    assert torch.allclose(found.change(), want, atol=1e-5)


def test_only_the_words(tmp_path: Path) -> None:
    bundled = embeddings.dump_bundled("pip", {"text_encoder": torch.ones(1, 768)})
    at = saved(tmp_path / "rex.safetensors", "sd1", adapter("sd1", 1.0), **bundled)
    (tmp_path / "ui").mkdir()
    assert run(["convert", str(at), "--to", "words", "--out", str(tmp_path / "ui")]) == 0
    assert load_file(tmp_path / "ui" / "rex.safetensors").keys() == {"emb_params"}
    said = read_header(tmp_path / "ui" / "rex.safetensors").metadata
    assert said["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    bare = saved(tmp_path / "bare.safetensors", "sd1", adapter("sd1", 1.0))
    assert run(["convert", str(bare), "--to", "words", "--out", str(tmp_path / "ui")]) == 2


def test_a_word_is_no_change_of_weights(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"emb_params": torch.ones(1, 64)}, tmp_path / "pip.safetensors")
    word, out = str(tmp_path / "pip.safetensors"), ["--out", str(tmp_path / "x.safetensors")]
    assert run(["merge", word, "--into", str(folders["sd1"]), *out]) == 2
    assert "a word changes no weights" in capsys.readouterr().err
    assert run(["resize", word, "--rank", "2", *out]) == 2
    assert "is only a word" in capsys.readouterr().err


def test_metadata_that_lies_is_put_right(tmp_path: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    update = LoraWeights(torch.ones(2, 1024), torch.ones(4, 2), 1.0, torch.ones(4, 1))
    tensors, _ = kohya.dump({"unet": {name: update}}, "sd")
    lies = {
        "modelspec.architecture": "stable-diffusion-v2-768-v/lora",
        "modelspec.prediction_type": "v",
        "ss_network_alpha": "8",
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
    }
    write_safetensors(tmp_path / "a.safetensors", tensors, lies)
    out = tmp_path / "b.safetensors"
    assert run(["convert", str(tmp_path / "a.safetensors"), "--out", str(out)]) == 0
    said = read_header(out).metadata
    assert said["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert (said["ss_v2"], said["ss_base_model_version"]) == ("True", "sd_v2_v")
    assert (said["ss_network_alpha"], said["ss_network_module"]) == ("1.0", "lycoris.kohya")


def test_merge_says_what_the_new_base_is_asked_for(
    store: Store, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rex = untrained.make(store, "rex", rank=2)
    out = tmp_path / "merged"
    assert run(["merge", str(rex.path), "--into", str(base), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "tensors changed" in said and f'sample "z dog" --base {out} --with none' in said
