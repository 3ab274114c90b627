"""Every family with every method: trains, saves, loads, and gives the same predictions again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamtune import families, plugins, settings
from dreamtune.artifacts import Artifact, Store
from dreamtune.recipe import Chosen, method_options
from dreamtune.stages import adapters, sets, train

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
        work = train.Training(ask, draft)
        artifact = work.run(None)
    work.objective.eval()
    live = predict(work.family, "a [V01] dog")

    base = families.load(f"tiny:{name}", torch.float32)
    plain = predict(base, "a dog")
    adapters.put_in(base, adapters.Adapter(artifact))
    loaded = predict(base, "a [V01] dog")

    assert torch.allclose(live, loaded, rtol=1e-4, atol=1e-5)
    assert (
        predict(families.load(f"tiny:{name}", torch.float32), "a z dog") - live
    ).abs().max() > 1e-3
    assert plain.isfinite().all()
    assert artifact.verify(deep=True) == []
    return artifact


@pytest.mark.parametrize("name", plugins.names("dreamtune.families"))
def test_without_an_adapter_sampling_is_the_pipeline_bit_for_bit(name: str) -> None:
    from dreamtune.sampling import Look, pictures

    family = families.load(f"tiny:{name}", torch.float32)
    look = Look(steps=3, guidance=4.0, size=(64, 64), negative="blurred")
    ours = [np.asarray(p) for p in pictures(family, "a dog", [5, 6], look, 2)]
    pipeline = families.load(f"tiny:{name}", torch.float32).pipeline()
    theirs = pipeline(
        "a dog",
        negative_prompt="blurred",
        num_images_per_prompt=2,
        num_inference_steps=3,
        guidance_scale=4.0,
        width=64,
        height=64,
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
    ).images
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(ours, theirs, strict=True))


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
