"""Bases as single files: the same modules as the folder that they came from, without a hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from dreamtune import bases, families
from dreamtune.bases import vocabulary
from dreamtune.errors import Damaged
from dreamtune.formats import checkpoint, ldm
from dreamtune.formats.checkpoint import UNET, VAE, XL
from dreamtune.methods import _targets
from tests import released

NAMES = [*released.NAMES]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {name: released.single_file(name, folder / f"{name}.safetensors") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_what_diffusers_takes_it_for(files: dict[str, Path], name: str) -> None:
    """So that the other tests do not compare our reading with our own idea of the format."""
    source, tensors = released.pipeline(name), load_file(files[name])
    unet = single_file_utils.convert_ldm_unet_checkpoint(tensors, dict(source.unet.config))
    vae = single_file_utils.convert_ldm_vae_checkpoint(tensors, dict(source.vae.config))
    same(unet, source.unet.state_dict())
    same(vae, source.vae.state_dict())
    for text in released.NAMES[name].text:
        encoder = getattr(source, text.part)
        if text.open_clip:
            state = single_file_utils.convert_open_clip_checkpoint(encoder, tensors, text.prefix)
            same(bare(state), bare(encoder.state_dict()), extra=text.unused > 0)


def bare(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("text_model."): v for k, v in state.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], extra: bool = False) -> None:
    assert a.keys() >= b.keys() if extra else a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in b)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_the_same_base_as_its_folder(
    files: dict[str, Path], name: str, tmp_path: Path
) -> None:
    released.pipeline(name).save_pretrained(tmp_path / "folder")
    one, other = (families.load(str(p), torch.float32) for p in (files[name], tmp_path / "folder"))
    same(one.denoiser.state_dict(), other.denoiser.state_dict())
    same(one.vae.state_dict(), other.vae.state_dict())
    for a, b in zip(one.text, other.text, strict=True):
        same(a.encoder.state_dict(), b.encoder.state_dict())
        prompts = ["a photo of [V01] dog", "ångström!! 12 Dogs'll  run", ""]
        assert torch.equal(a.tokenize(prompts), b.tokenize(prompts))
    assert torch.equal(one.process.alphas_cumprod, other.process.alphas_cumprod)
    assert one.process.prediction == other.process.prediction
    assert (one.resolution, one.spec) == (other.resolution, other.spec)
    tokens = {stack.name: stack.tokenize(["a dog"]) for stack in one.text}
    meta = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
    outputs = [
        family.predict(
            torch.ones(1, 4, 8, 8), torch.tensor([500]),
            family.condition(family.encode_text(tokens), meta),
        )
        for family in (one, other)
    ]  # fmt: skip
    assert torch.equal(*outputs)
    pixels = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    for a, b in zip(one.encode_image(pixels), other.encode_image(pixels), strict=True):
        assert torch.equal(a, b)


def test_half_precision_and_empty_marks(files: dict[str, Path], tmp_path: Path) -> None:
    """Fine-tunes of XL say by empty tensors that they predict v, with zero terminal SNR."""
    path = tmp_path / "half.safetensors"
    tensors = {k: v.half() for k, v in load_file(files["sdxl"]).items()}
    save_file({**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    family = families.load(str(path), torch.float32)
    weight = family.denoiser.conv_in.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight.half(), tensors[f"{UNET}input_blocks.0.0.weight"])
    assert family.process.prediction == "v_prediction"
    assert family.process.alphas_cumprod[-1] == 0


def test_metadata_decides_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "liar.safetensors"
    said = {"modelspec.architecture": "stable-diffusion-v1", "modelspec.prediction_type": "v"}
    save_file(load_file(files["sdxl"]), path, said)
    base = bases.find(str(path))
    assert isinstance(base, bases.Single) and base.kind == XL
    assert base.config("scheduler")["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda t: t.pop(f"{UNET}out.2.bias"), Damaged, "1 weights are not in"),
        (lambda t: t.update({f"{UNET}extra": torch.ones(1)}), Damaged, "belong nowhere"),
        (lambda t: [t.pop(k) for k in [*t] if k.startswith(VAE)], Damaged, "no autoencoder"),
        (lambda t: [t.pop(k) for k in [*t] if "cond_stage" in k], Damaged, "no text encoder"),
    ],
)
def test_what_lacks_something_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object],
    kind: type,
    words: str,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    tensors = load_file(files["sd1"])
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(kind, match=words):
        families.load(str(tmp_path / "x.safetensors"), torch.float32)


def test_levels_may_differ_in_resnets() -> None:
    """diffusers allows it, and `mini` has more where its latents are largest."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=(2, 1),
        cross_attention_dim=8,
    )
    blocks = ldm.Blocks.of(unet.config)
    names, back = ldm.unet_names(blocks), ldm.unet_names_back(blocks)
    shapes = {}
    for path, weight in unet.state_dict().items():
        there = ldm.renamed(path, names)
        assert there is not None and ldm.renamed(there, back) == path
        shapes[f"{UNET}{there}"] = tuple(weight.shape)
    assert checkpoint.blocks_of(shapes) == blocks
    assert checkpoint.levels_of(shapes) == [[1, 2], [4]]
    assert checkpoint.numbers(shapes, rf"{UNET}output_blocks\.(\d+)\.") == [0, 1, 2, 3, 4]
    # A level that has lost a resnet on one way only.
    lost = {k: v for k, v in shapes.items() if not k.startswith(f"{UNET}input_blocks.2.")}
    with pytest.raises(Damaged, match="do not fit"):
        checkpoint.blocks_of(lost)
    chosen = _targets.choose(unet, {}, ("conv1",), ("OUT04", "IN02"))
    assert chosen == ["down_blocks.0.resnets.1.conv1", "up_blocks.1.resnets.2.conv1"]


def test_clips_vocabulary_is_whole() -> None:
    """The same ids as open_clip's tokenizer, which is OpenAI's."""
    import open_clip
    from transformers import CLIPTokenizer

    words, merges = vocabulary.of_size(49408)
    tokenizer = CLIPTokenizer(vocab=words, merges=merges)
    encode = open_clip.tokenizer.SimpleTokenizer().encode
    for text in (
        "a photo of sks dog",
        "Ünïcode — naïve café, 3.14!",
        "it's 100% don't",
        "犬の写真",
    ):
        assert tokenizer(text, add_special_tokens=False).input_ids == encode(text)
