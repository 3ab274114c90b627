"""`sample --with FILE`: adapters that this store did not make, put in as their layout means it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dreamtune import bases, families
from dreamtune.cli import run
from dreamtune.errors import NonFinite, NotFound, Usage
from dreamtune.formats import embeddings, kohya, lora
from dreamtune.formats.header import body_sha256
from dreamtune.formats.lora import LoraWeights, Update
from dreamtune.formats.lycoris import Full, Loha, Lokr
from dreamtune.fsops import hash_file, write_safetensors
from dreamtune.settings import Sample
from dreamtune.stages import convert, sources
from dreamtune.stages import sample as stage
from dreamtune.stages.adapters import choose
from dreamtune.stages.foreign import Foreign
from dreamtune.stages.lines import Line
from dreamtune.store import Store
from tests import untrained

BASE = "tiny:sd"


def family(name: str = BASE) -> Any:
    return families.load(name, torch.float32)


def weights(base: Any) -> dict[str, Tensor]:
    models = {"unet": base.denoiser, "text_encoder": base.text[0].encoder}
    return {
        f"{part}.{path}": layer.weight.detach().clone()
        for part, model in models.items()
        for path, layer in lora.layers(part, model).items()
    }


def updates(kind: str) -> dict[str, Update]:
    """Of every attention's query in the UNet, 64 or 128 wide."""
    draw = torch.Generator().manual_seed(1)

    def some(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=draw)

    def one(weight: Tensor) -> Update:
        out, width = weight.shape
        if kind == "loha":
            return Loha((some(out, 2), some(2, width)), (some(out, 2), some(2, width)), 1.0)
        if kind == "lokr":
            return Lokr(some(4, 4), (some(out // 4, 2), some(2, width // 4)), 1.0)
        if kind == "full":
            return Full(some(out, width))
        magnitude = weight.norm(dim=1)[:, None] * 1.1 if kind == "dora" else None
        return LoraWeights(some(2, width), some(out, 2), 1.0, magnitude)

    found = weights(family())
    return {
        name.removeprefix("unet."): one(weight)
        for name, weight in found.items()
        if name.endswith("attn1.to_q")
    }


def saved(path: Path, mine: dict[str, Update], **extra: Tensor) -> Path:
    tensors, metadata = kohya.dump({"unet": mine}, "sd")
    write_safetensors(path, tensors | extra, metadata | {"modelspec.trigger_phrase": "sks dog"})
    return path


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "full"])
def test_weights_change_as_the_file_says(kind: str, tmp_path: Path) -> None:
    mine = updates(kind)
    base = family()
    before = weights(base)
    Foreign(saved(tmp_path / "x.safetensors", mine), weight=0.5).put_in(base)
    for name, weight in weights(base).items():
        update = mine.get(name.removeprefix("unet."))
        want = weight if update is None else before[name] + 0.5 * lora.delta(update, before[name])
        assert torch.allclose(weight, want, atol=1e-6), name
        assert update is None or not torch.equal(weight, before[name]), name


@pytest.mark.parametrize("bundled", [False, True], ids=["alone", "with a LoRA"])
def test_words_are_identifiers(bundled: bool, tmp_path: Path) -> None:
    base = family()
    width = base.text[0].encoder.config.hidden_size
    vectors = {"text_encoder": torch.randn(2, width)}
    path = tmp_path / "My Pip.safetensors"
    if bundled:
        saved(path, updates("lora"), **embeddings.dump_bundled("pip", vectors))
    else:
        write_safetensors(path, embeddings.dump(vectors))
    file = Foreign(path)
    assert file.is_word is not bundled
    assert file.identifiers == (["[pip]"] if bundled else ["[My-Pip]"])
    file.put_in(base)
    ids = base.text[0].tokenize([f"a {file.identifiers[0]}"])
    read = base.text[0].encoder.get_input_embeddings()(ids)[0]
    assert torch.equal(read[2:4], vectors["text_encoder"])
    assert file.spoken(file.identifiers[0], base.text[0]) == ("pip" if bundled else "My Pip")


def test_choosing(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    lora_file = saved(tmp_path / "x@2.safetensors", updates("lora"))
    word = tmp_path / "pip.safetensors"
    write_safetensors(word, {"emb_params": torch.ones(1, 32)})

    def chosen(prompt: str, *refs: str) -> list[tuple[str, float, list[str]]]:
        return [(a.label, a.weight, a.identifiers) for a in choose(store, [prompt], refs)[0]]

    assert chosen("a dog", f"{lora_file}@0.5") == [("x@2.safetensors", 0.5, [])]
    assert "does not say sks dog" in capsys.readouterr().err
    assert chosen("sks dog [V02]", str(lora_file), f"{word} as V02") == [
        ("x@2.safetensors", 1.0, []),
        ("pip.safetensors", 1.0, ["[V02]"]),
    ]
    assert not capsys.readouterr().err
    with pytest.raises(Usage, match=r"has no @step"):
        chosen("a", f"{word}@step=3")
    with pytest.raises(Usage, match=r"has no concepts, which 'V02' cannot rename"):
        chosen("a", f"{lora_file} as V02")
    with pytest.raises(NotFound, match=r"there is no file"):
        chosen("a", "nothing.safetensors")


def test_what_does_not_fit_is_refused_before_the_base_is_loaded(
    tmp_path: Path, store: Store
) -> None:
    """By the built-in base's own files, which nothing here reads further."""
    base = bases.find("mini")
    other = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": updates("full").popitem()[1]}
    with pytest.raises(Usage, match="does not fit the base mini"):
        Foreign(saved(tmp_path / "x.safetensors", other)).check(base)
    write_safetensors(tmp_path / "y.safetensors", {"emb_params": torch.ones(1, 768)})
    word = Foreign(tmp_path / "y.safetensors")
    with pytest.raises(Usage, match=r"does not fit the base mini.*Stable Diffusion 1\.x"):
        word.check(base)
    with pytest.raises(Usage, match=r"768 wide"):
        word.put_in(family())
    broken = {"mid_block.attentions.0.proj_in": Full(torch.full((4, 4), torch.nan))}
    with pytest.raises(NonFinite):
        Foreign(saved(tmp_path / "z.safetensors", broken)).check(base)


def test_an_adapter_of_zeros_is_told(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(name: str, learned: dict[str, Update]) -> str:
        sources.find(store, str(saved(tmp_path / f"{name}.safetensors", learned)))
        return capsys.readouterr().err

    for kind in ("lora", "dora"):
        learned = updates(kind)
        ups = [update.up for update in learned.values() if isinstance(update, LoraWeights)]
        for up in ups[1:]:
            up.zero_()
        assert not told(f"{kind}-some", learned)
        ups[0].zero_()
        said = "changes nothing: every update in it is zero"  # a DoRA has its magnitude
        assert (said in told(f"{kind}-none", learned)) == (kind == "lora")


def test_pictures_say_which_files_made_them(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    path = saved(tmp_path / "x.safetensors", updates("lora"))
    word = tmp_path / "pip.safetensors"
    write_safetensors(word, {"emb_params": torch.ones(1, 32)})
    chosen = Sample(base=BASE, steps=1, count=1, size="64x64", device="cpu")
    ask = stage.Run(store, [Line("sks [pip]", chosen)], [f"{path}@0.5", str(word)], chosen)
    first = stage.run(ask)
    with Image.open(first.path / "000-0.png") as picture:
        text = picture.info["parameters"]
    assert text.startswith("sks pip <lora:x:0.5>\n")
    assert f'Lora hashes: "x: {body_sha256(path)[:12]}"' in text
    assert f'TI hashes: "pip: {hash_file(word)[:12]}"' in text
    (told,) = first.read_json("samples.json")
    assert [a["id"] for a in told["adapters"]] == [hash_file(path), hash_file(word)]
    assert not first.parents

    saved(path, updates("loha"))  # another file of that name makes other pictures
    again = stage.run(stage.Run(store, ask.lines, ask.refs, chosen))
    assert again.id != first.id


@pytest.mark.parametrize("method", ["lora", "embedding"])
def test_training_goes_straight_to_a_file(method: str, tmp_path: Path, store: Store) -> None:
    artifact = untrained.make(store, "rex", method)
    out = tmp_path / "ui.safetensors"
    assert convert.deliver(store, artifact, out) == [out]
    own, there = load_file(artifact.path / "rex.safetensors"), load_file(out)
    assert own.keys() == there.keys() and all(torch.equal(own[k], there[k]) for k in own)


def test_train_refuses_a_place_before_any_work(
    tmp_path: Path, make_prep: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_prep()
    (tmp_path / "there.safetensors").write_text("mine")
    train = ["train", "--base", BASE, "--steps", "1", "--dry-run", "--out"]
    for out, code in (("there.safetensors", 17), ("no/x.safetensors", 10), ("x.png", 2)):
        assert run([*train, str(tmp_path / out)]) == code
    assert run([*train, str(tmp_path / "there.safetensors"), "--force"]) == 0
    assert (tmp_path / "there.safetensors").read_text() == "mine"
