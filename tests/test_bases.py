"""Bases from folders: every layout that people have, and nothing that is incomplete or unsafe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamtune import bases, families, plugins
from dreamtune.artifacts import Artifact
from dreamtune.errors import Damaged, Unsafe
from dreamtune.methods import Concept
from dreamtune.methods.embedding import Method, Options
from tests import forked

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def same_as_tiny(base: Path) -> bool:
    ours, tiny = (families.load(b, torch.float32) for b in (str(base), "tiny:sd"))
    pairs = [(ours.denoiser, tiny.denoiser), (ours.vae, tiny.vae)]
    pairs += [(ours.text[0].encoder, tiny.text[0].encoder)]
    return all(
        torch.equal(tensor, b.state_dict()[name])
        for a, b in pairs
        for name, tensor in a.state_dict().items()
    )


def older_names(base: Path) -> None:
    tensors = load_file(base / TEXT)
    save_file({f"text_model.{k}": v for k, v in tensors.items()}, base / TEXT, {"format": "pt"})


def half_names(base: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (base / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))


def sharded(base: Path) -> None:
    tensors = load_file(base / UNET)
    names = sorted(tensors)
    half = len(names) // 2
    places = {}
    for i, some in enumerate((names[:half], names[half:]), 1):
        file = f"diffusion_pytorch_model-{i:05d}-of-00002.safetensors"
        save_file({n: tensors[n] for n in some}, base / "unet" / file, {"format": "pt"})
        places |= dict.fromkeys(some, file)
    (base / UNET).unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (base / f"{UNET}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("change", [older_names, half_names, sharded])
def test_layouts_that_people_have(change: Callable[[Path], None], base: Path) -> None:
    change(base)
    assert same_as_tiny(base)


def test_other_schedulers_lend_ddim_their_noise_only(base: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler

    DPMSolverMultistepScheduler(beta_start=0.01).save_pretrained(base / "scheduler")
    scheduler = families.load(str(base), torch.float32).scheduler
    assert scheduler.config.clip_sample is False
    assert scheduler.config.beta_start == 0.01


def test_text_is_pooled_at_its_end_even_after_a_new_word(base: Path) -> None:
    """SDXL's configs give 2 as the end's id, which transformers reads as: the largest id."""
    file = base / "text_encoder/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": 2}))
    family = families.load(str(base), torch.float32)
    Method(Options()).attach(family, [Concept("[V01]", "dog", "rex")], seed=0)
    (stack,) = family.text
    ids = stack.tokenize(["a [V01]"])
    end = ids[0].tolist().index(stack.tokenizer.eos_token_id)
    assert ids.max() > stack.tokenizer.eos_token_id
    output = stack.encoder(ids)
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, end])


def test_a_link_inside_the_folder_counts(base: Path) -> None:
    before = bases.find(str(base)).fingerprint()
    (base / "unet").rename(base / "elsewhere")
    (base / "unet").symlink_to("elsewhere")
    assert bases.find(str(base)).fingerprint() == before
    assert same_as_tiny(base)


def without_a_weight(base: Path, part: str) -> None:
    tensors = load_file(base / part)
    tensors.pop(sorted(tensors)[5])
    save_file(tensors, base / part, {"format": "pt"})


def cut_off(base: Path) -> None:
    (base / UNET).write_bytes((base / UNET).read_bytes()[:-100])


def pickle_only(base: Path) -> None:
    (base / UNET).rename(base / "unet/diffusion_pytorch_model.bin")


def renamed_pickle(base: Path) -> None:
    torch.save({"x": torch.zeros(2)}, base / UNET)


def shard_elsewhere(base: Path) -> None:
    tensors = load_file(base / TEXT)
    (base / TEXT).rename(base / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "../outside.safetensors")}
    (base / f"{TEXT}.index.json").write_text(json.dumps(index))
    save_file({"x": torch.zeros(1)}, base / "text_encoder/x.safetensors")


def foreign_code(base: Path) -> None:
    file = base / "text_encoder/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_attn_implementation": "a/b"}))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda base: without_a_weight(base, UNET), Damaged, "1 weights are not in"),
        (lambda base: without_a_weight(base, TEXT), Damaged, "1 weights are not in"),
        (cut_off, Damaged, "truncated"),
        (pickle_only, Unsafe, "a pickle"),
        (renamed_pickle, Unsafe, "a pickle"),
        (shard_elsewhere, Unsafe, "beside its index"),
        (foreign_code, Unsafe, "foreign code"),
    ],
)
def test_what_is_incomplete_or_unsafe_is_refused(
    change: Callable[[Path], None], kind: type, words: str, base: Path
) -> None:
    change(base)
    with pytest.raises(kind, match=words):
        families.load(str(base), torch.float32)


@pytest.mark.parametrize("name", plugins.names("dreamtune.families"))
def test_our_loading_is_the_libraries_own(name: str, tmp_path: Path) -> None:
    """Bit for bit: every weight, and every number that is computed and not stored."""
    source = families.load(f"tiny:{name}", torch.float32).pipeline()
    source.save_pretrained(tmp_path / "base")
    theirs = type(source).from_pretrained(tmp_path / "base")
    ours = families.load(str(tmp_path / "base"), torch.float32)
    pairs = [(ours.denoiser, getattr(theirs, ours.denoiser_name)), (ours.vae, theirs.vae)]
    pairs += [(stack.encoder, getattr(theirs, stack.name)) for stack in ours.text]
    for module, other in pairs:
        assert {k: v.shape for k, v in other.named_buffers()} == {
            k: v.shape for k, v in module.named_buffers()
        }
        others = other.state_dict()
        assert module.state_dict().keys() == others.keys()
        assert all(torch.equal(v, others[k]) for k, v in module.state_dict().items())
        assert not any(p.requires_grad or p.is_meta for p in module.parameters())
    for stack in ours.text:
        ids = stack.tokenize(["a dog"])
        with torch.no_grad():  # else T5's layers are fused in other ways
            assert torch.equal(stack.encoder(ids)[0], getattr(theirs, stack.name)(ids)[0])


def test_released_parts_are_gone_or_come_back_for_a_while() -> None:
    family = families.load("tiny:sd", torch.float32)
    families.release(family, text=True, keep=True)
    with families.recalled(family):
        assert family.vae.device == family.text[0].encoder.device == family.denoiser.device
    families.release(family, text=False, keep=False)
    assert family.vae is None and family.text[0].encoder is not None
    families.release(family, text=True, keep=False)
    assert family.text[0].encoder is None
    assert family.text[0].tokenize(["a dog"]).shape == (1, 77)


# What an adapter records of its base.


@pytest.fixture
def trained(base: Path, make_prep: Callable[..., Artifact], tmp_path: Path) -> Path:
    """A store with an adapter that was trained on the folder `base`."""
    make_prep()
    args = ["train", "--base", str(base), "--steps", "1", "--batch", "1", "--rank", "2"]
    assert forked.run([*args, "--name", "rex"], tmp_path) == 0
    return tmp_path


def said(folder: Path) -> str:
    return (folder / "stderr").read_text()


def test_nothing_says_where_a_base_lies_and_sample_finds_it(trained: Path, base: Path) -> None:
    sample = ["sample", "[V01] dog", "-n", "1", "--steps", "1"]
    assert forked.run(sample, trained) == 0, said(trained)
    for file in (trained / "artifacts").rglob("*"):
        assert not file.is_file() or str(trained).encode() not in file.read_bytes(), file
    (facts,) = (trained / "artifacts").rglob("adapter.json")
    assert json.loads(facts.read_text())["base"] == "base"
    assert "trained on other weights" not in said(trained)


def test_a_base_that_went_must_be_named(trained: Path, base: Path) -> None:
    sample = ["sample", "[V01] dog", "-n", "1", "--steps", "1"]
    base.rename(trained / "elsewhere")
    assert forked.run(sample, trained) == 10
    assert "--base PATH" in said(trained)
    assert forked.run([*sample, "--base", "elsewhere"], trained) == 0
    assert "trained on other weights" not in said(trained)
