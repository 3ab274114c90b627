"""What is said of a base against its files: in training, in sampling, and in what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dreamtune import bases, families, settings
from dreamtune.artifacts import Artifact
from dreamtune.bases.overrides import Overridden, Overrides, override, recorded
from dreamtune.errors import Unsafe, Usage
from dreamtune.families import sd
from dreamtune.stages import sample, train
from dreamtune.stages.lines import Line
from dreamtune.store import Store
from tests.test_matrix import ask_for
from tests.variants import said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    families.load("tiny:sd", torch.float32).pipeline().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def states(family: families.Family) -> torch.Tensor:
    (stack,) = family.text
    with torch.no_grad():
        return family.encode_text({stack.name: stack.tokenize(["a dog"])})["text"]


def test_saying_it_is_as_good_as_a_right_file(folder: Path) -> None:
    lying = said(str(folder), prediction="v_prediction", zero_snr=True)
    more = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    change(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction", **more)
    right = families.load(str(folder), torch.float32)
    assert lying.process.prediction == right.process.prediction == "v_prediction"
    assert torch.equal(lying.process.alphas_cumprod, right.process.alphas_cumprod)
    assert lying.process.alphas_cumprod[-1] == 0
    assert dict(lying.scheduler.config) == dict(right.scheduler.config)
    assert said(str(folder), prediction="epsilon", zero_snr=False).process.prediction == "epsilon"


def test_clip_skip_is_a_shorter_encoder() -> None:
    """Which is how released 2.x has it: its config leaves out OpenCLIP's last layer."""
    skipping = states(said("tiny:sd", clip_skip=2))
    shorter = sd.Family.tiny()
    (stack,) = shorter.text
    stack.encoder.encoder.layers = stack.encoder.encoder.layers[:1]
    assert torch.equal(skipping, states(shorter))
    assert not torch.equal(skipping, states(sd.Family.tiny()))


@pytest.mark.parametrize("alone", [True, False], ids=["a folder of its own", "another base's"])
def test_another_autoencoder(alone: bool, folder: Path, tmp_path: Path) -> None:
    from dreamtune.families import _tiny

    other = sd.Family.tiny()
    other.vae = _tiny.autoencoder(4, seed=99)
    place = tmp_path / "Better VAE!"
    (other.vae if alone else other.pipeline()).save_pretrained(place)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    family = said(str(folder), vae=str(place))
    with torch.no_grad():
        assert torch.equal(family.encode_image(pixels)[0], other.encode_image(pixels)[0])
        own = families.load(str(folder), torch.float32)
        assert torch.equal(family.denoiser.conv_in.weight, own.denoiser.conv_in.weight)
        assert not torch.equal(own.encode_image(pixels)[0], other.encode_image(pixels)[0])


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path) -> None:
    from dreamtune.families import _tiny

    _tiny.autoencoder(16, seed=1).save_pretrained(tmp_path / "vae16")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.json").write_text('{"_class_name": "Autoencoder9000"}')
    for base, overrides, kind, words in (
        ("tiny:sd", {"zero_snr": True}, Usage, "nothing left to predict"),
        ("tiny:sd", {"clip_skip": 3}, Usage, "2 layers"),
        ("tiny:sd", {"vae": str(tmp_path / "vae16")}, Usage, "16 channels, and 4"),
        ("tiny:sd", {"vae": str(tmp_path / "foreign")}, Unsafe, "Autoencoder9000"),
        ("tiny:sd3", {"prediction": "epsilon"}, Usage, "--prediction is not for"),
        ("tiny:flux", {"zero_snr": False}, Usage, "--zero-snr is not for"),
        ("tiny:flux", {"clip_skip": 2}, Usage, "T5"),
    ):
        with pytest.raises(kind, match=words):
            said(base, **overrides)
    change(folder / "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(Usage, match=r"predicts 'sample'.*--prediction"):
        families.load(str(folder), torch.float32)
    assert said(str(folder), prediction="epsilon").process.prediction == "epsilon"


def test_each_part_has_its_own_hash(folder: Path) -> None:
    plain = bases.find(str(folder))
    read = override(plain, Overrides(clip_skip=2))
    noised = override(plain, Overrides(prediction="v_prediction"))
    assert override(plain, Overrides()) is plain
    assert len({base.fingerprint() for base in (plain, read, noised)}) == 3
    assert len({base.fingerprint("text_encoder") for base in (plain, read)}) == 2
    assert len({base.fingerprint("vae") for base in (plain, read, noised)}) == 1


def test_what_training_was_told_holds_in_sampling(
    folder: Path, store: Store, make_prep: Callable[..., Artifact], tmp_path: Path
) -> None:
    vae = tmp_path / "somewhere" / "vae-2"
    sd.Family.tiny().vae.save_pretrained(vae)
    told = {"prediction": "v_prediction", "clip_skip": 2, "vae": str(vae)}
    ask = ask_for(store, make_prep(), str(folder), "lora", {}, **told)
    artifact = train.run(ask)
    written = [artifact.path / name for name in ("adapter.json", "recipe.toml", "manifest.json")]
    assert not any("somewhere" in file.read_text() for file in written)
    assert artifact.read_json("adapter.json")["overrides"]["vae"] == "vae-2"

    def base(**own: object) -> bases.Found:
        asked = settings.Sample(**own)
        return sample.Run(store, [Line.read("a [V01] dog", asked)], [artifact.label], asked).base

    assert base().fingerprint() == ask.base.fingerprint()
    assert base(base=str(folder)).fingerprint() == ask.base.fingerprint()
    assert base(base="tiny:sd").fingerprint() == bases.find("tiny:sd").fingerprint()
    other = base(clip_skip=1)
    assert isinstance(other, Overridden)
    assert (other.said.clip_skip, other.said.prediction) == (1, "v_prediction")


def test_a_recipe_names_an_autoencoder_and_finds_it_again(folder: Path, tmp_path: Path) -> None:
    sd.Family.tiny().vae.save_pretrained(tmp_path / "vae-2")
    base = override(bases.find(str(folder)), Overrides(vae=str(tmp_path / "vae-2")))
    assert isinstance(base, Overridden)
    bases.remember(base)
    again = override(bases.find(str(folder)), Overrides(vae="vae-2"))
    assert again.fingerprint() == base.fingerprint()
    assert recorded(base.record()) == Overrides(vae=str((tmp_path / "vae-2").resolve()))
