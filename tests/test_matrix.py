"""Every family with every method: trains, saves, loads, and gives the same predictions again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dreamtune import families, plugins, settings
from dreamtune.artifacts import Artifact
from dreamtune.recipe import Chosen, method_options
from dreamtune.sampling import Look
from dreamtune.stages import sets, train
from dreamtune.stages.trained import Trained
from dreamtune.store import Store
from tests.variants import VARIANTS

LOOK = Look(steps=3, guidance=4.0, size=(64, 64))
CASES = [
    (family, method)
    for family in plugins.names("dreamtune.families")
    for method in plugins.names("dreamtune.methods")
]


def ask_for(
    store: Store,
    prep: Artifact,
    base: str,
    method: str,
    asked: dict[str, object],
    **changes: object,
) -> train.Run:
    """A short run with a large rate, so that three updates show. asked: the method's options."""
    options = {"steps": 3, "batch": 2, "learning_rate": 0.05, "variants": 2, "device": "cpu"}
    chosen = Chosen(method, method_options()[method](**asked))
    return train.Run(
        store,
        [sets.whole(prep)],
        settings.Train(base=base, **{**options, **changes}),
        chosen,
        f"{method}-dog",
    )


def predict(family: families.Family, prompt: str) -> torch.Tensor:
    """The prediction for one fixed noisy latent and a prompt."""
    size = family.resolution // 8
    channels = family.vae.config.latent_channels
    xt = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(7))
    tokens = {stack.name: stack.tokenize([prompt]) for stack in family.text}
    with torch.no_grad():
        cond = family.condition(family.encode_text(tokens), torch.tensor([[64.0] * 6]))
        t = family.process.timesteps(torch.tensor([0.4]), (size, size))
        return family.predict(xt, t, cond)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_trained_concept_comes_back(
    name: str, method: str, store: Store, make_prep: Callable[..., Artifact]
) -> None:
    run_matrix_case(name, method, store, make_prep())


def run_matrix_case(
    name: str, method: str, store: Store, prep: Artifact, **options: object
) -> Artifact:
    ask = ask_for(store, prep, f"tiny:{name}", method, options)
    with store.draft("adapter", ask.name, ask.key, ask.recipe, [prep.id], keep=True) as draft:
        work = train.Training(ask, draft, None)
        artifact = work.run()
    learner = work.learner
    learner.objective.eval()
    bring_back(learner.family, families.load(f"tiny:{name}", torch.float32))
    live = predict(learner.family, "a [V01] dog")

    base = families.load(f"tiny:{name}", torch.float32)
    plain = predict(base, "a dog")
    Trained(artifact).put_in(base)
    loaded = predict(base, "a [V01] dog")

    assert torch.allclose(live, loaded, rtol=1e-4, atol=1e-5)
    assert (
        predict(families.load(f"tiny:{name}", torch.float32), "a z dog") - live
    ).abs().max() > 1e-3
    assert plain.isfinite().all()
    assert artifact.verify(deep=True) == []
    return artifact


def bring_back(family: families.Family, base: families.Family) -> None:
    """The frozen parts that training let go of once it had encoded all."""
    family.vae = family.vae or base.vae
    for stack, whole in zip(family.text, base.text, strict=True):
        stack.encoder = stack.encoder or whole.encoder


@pytest.mark.parametrize("negative", ["", "blurred"], ids=["plain", "negative"])
@pytest.mark.parametrize("name", VARIANTS)
def test_without_an_adapter_sampling_is_the_pipeline_bit_for_bit(name: str, negative: str) -> None:
    from dreamtune.sampling import Look, pictures

    family = VARIANTS[name]()
    look = Look(steps=3, guidance=4.0, size=(64, 64), negative=negative)
    ours = [np.asarray(p) for p in pictures(family, "a dog", [5, 6], look, 2)]
    theirs = by_pipeline(VARIANTS[name](), "a dog", [5, 6], negative)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def by_pipeline(
    family: families.Family, prompt: str, seeds: list[int], negative: str = ""
) -> list[np.ndarray]:
    """Pictures of three steps by the family's diffusers pipeline, called as its users do."""
    lengths = [stack.length for stack in family.text if stack.part == "text_encoder_3"]
    length = {"max_sequence_length": lengths[0]} if lengths else {}
    pipeline = family.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompt,
        negative_prompt=negative or None,
        num_images_per_prompt=len(seeds),
        num_inference_steps=3,
        guidance_scale=4.0,
        width=64,
        height=64,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        **length,
    ).images
    return [np.asarray(image) for image in images]


FILES = {
    "lora": "pytorch_lora_weights.safetensors",
    "embedding": "learned_embeds.safetensors",
}
RELOADS = [(name, "lora") for name in ("sd", "sdxl", "sd3", "flux dev", "flux schnell")]
RELOADS += [(name, "embedding") for name in ("sd", "sdxl", "flux dev")]


@pytest.mark.parametrize(("name", "method"), RELOADS)
def test_plain_diffusers_gives_the_same_pictures(
    name: str,
    method: str,
    store: Store,
    make_prep: Callable[..., Artifact],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through load_lora_weights and load_textual_inversion, which SD 3's pipeline has not."""
    from dreamtune.sampling import pictures

    VARIANTS[name]().pipeline().save_pretrained(tmp_path / "base")
    prep = make_prep()
    ask = ask_for(store, prep, str(tmp_path / "base"), method, {})
    with store.draft("adapter", ask.name, ask.key, ask.recipe, [prep.id], keep=True) as draft:
        artifact = train.Training(ask, draft, None).run()
    family = families.load(str(tmp_path / "base"), torch.float32)
    plain = [np.asarray(p) for p in pictures(family, "a dog", [5], LOOK, 1)]
    Trained(artifact).put_in(family)
    ours = [np.asarray(p) for p in pictures(family, "a [V01] dog", [5], LOOK, 1)]

    other = families.load(str(tmp_path / "base"), torch.float32)
    pipeline = other.pipeline()
    if method == "lora":
        pipeline.load_lora_weights(artifact.path)
    else:
        load_words(pipeline, artifact.path / FILES[method])
    monkeypatch.setattr(other, "pipeline", lambda: pipeline)
    (word,) = {stack.words["[V01]"] for stack in family.text}
    theirs = by_pipeline(other, f"a {word} dog", [5])
    assert np.abs(ours[0].astype(int) - theirs[0]).max() <= 1
    assert np.abs(ours[0].astype(int) - plain[0]).max() > 1


def load_words(pipeline: object, file: Path) -> None:
    """A file with one encoder's vectors as it is; one with several, one by one."""
    tensors = load_file(file)
    if len(tensors) == 1:
        pipeline.load_textual_inversion(file)  # type: ignore[attr-defined]
        return
    second = {"clip_g": "_2", "t5xxl": "_2", "clip_l": ""}
    for key, vectors in tensors.items():
        pipeline.load_textual_inversion(  # type: ignore[attr-defined]
            {"emb_params": vectors},
            token="<embedding-dog-v01>",
            text_encoder=getattr(pipeline, f"text_encoder{second[key]}"),
            tokenizer=getattr(pipeline, f"tokenizer{second[key]}"),
        )


def test_pictures_do_not_depend_on_the_batch() -> None:
    from dreamtune.sampling import Look, pictures

    family = families.load("tiny:sd", torch.float32)
    look = Look(steps=3, guidance=4.0, size=(64, 64))
    one = [np.asarray(p) for p in pictures(family, "a dog", [5, 6, 7], look, 1)]
    three = [np.asarray(p) for p in pictures(family, "a dog", [5, 6, 7], look, 3)]
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(one, three, strict=True)) <= 1


def test_a_family_is_one_file(
    tmp_path: Path,
    store: Store,
    make_prep: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    shutil.copy(Path(families.__file__).with_name("sd.py"), folder / "toy.py")
    text = (folder / "toy.py").read_text().replace('"tiny:sd"', '"tiny:toy"')
    (folder / "toy.py").write_text(
        text.replace("name = lora_layout = ", 'name = "toy"\n    lora_layout = ')
    )
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(folder)])
    assert "toy" in plugins.names("dreamtune.families")
    run_matrix_case("toy", "lora", store, make_prep())
    run_matrix_case("toy", "embedding", store, make_prep())


@pytest.mark.parametrize(("name", "method"), CASES)
def test_halves_of_precision_go_together_in_sampling(name: str, method: str) -> None:
    """As on a GPU: bf16 weights, fp32 in the VAE and in what is trained."""
    from dreamtune.methods import Concept
    from dreamtune.sampling import Look, pictures

    family = families.load(f"tiny:{name}", torch.bfloat16)
    assert (family.denoiser.dtype, family.vae.dtype) == (torch.bfloat16, torch.float32)
    module = plugins.load("dreamtune.methods", method)
    module.Method(module.Options()).attach(family, [Concept("[V01]", "dog", "rex")], seed=0)
    (picture,) = pictures(family, "a [V01] dog", [5], Look(2, 4.0, (64, 64)), 1)
    assert picture.size == (64, 64)
