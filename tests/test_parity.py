"""The training maths against a reference written from the papers, in fp32 to 1e-5."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image
from torch import Tensor

from dreamtune import families, losses
from dreamtune.data.cache import CropPlan, cut
from dreamtune.data.dataset import Sample
from dreamtune.diffusion import Ddpm, Flow, Times
from dreamtune.families import flux, sd3
from dreamtune.methods import Concept
from dreamtune.methods.lora import Method, Options
from dreamtune.objective import Objective
from tests.variants import VARIANTS, said

CAPTIONS = ["a photo of [V01] dog", "[V01] dog in the snow"]
CONCEPTS = [Concept("[V01]", "dog", "dog")]


def fixed_batch(family: families.Family) -> dict:
    source = torch.Generator().manual_seed(3)
    shape = (2, family.vae.config.latent_channels, 8, 8)
    tokens = {stack.name: stack.tokenize(CAPTIONS) for stack in family.text}
    with torch.no_grad():
        text = family.encode_text(tokens)
    draws = {n: torch.randn(shape, generator=source) for n in ("mean", "noise", "posterior_noise")}
    std = torch.rand(shape, generator=source)
    u, meta = torch.tensor([0.13, 0.78]), torch.tensor([[80.0, 96.0, 3.0, 5.0, 64.0, 64.0]] * 2)
    return {**draws, "std": std, "u": u, "meta": meta, "text": text}


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() <= 1e-5 * theirs.norm())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sd_loss_and_lora_gradients(prediction: str) -> None:
    """LoRA's gradients by the chain rule: for W' = W + s up down, with G = dL/dW',
    dL/d up = s G down^T and dL/d down = s up^T G. The reference has no LoRA layers at all."""
    family = families.load("tiny:sd", torch.float32)
    family.process = Ddpm(family.process.alphas_cumprod, prediction)
    method = Method(Options(rank=4, alpha=6.0))
    method.attach(family, CONCEPTS, seed=0)
    (group,) = method.groups()
    source = torch.Generator().manual_seed(5)
    for p in group.parameters.values():  # up is zero at first, which would hide half of it
        p.data = torch.randn(p.shape, generator=source) * 0.1
    batch = fixed_batch(family)
    error = Objective(family, method.live(), losses.l2)(batch)
    error.mean().backward()

    loss, slopes = reference(prediction, batch, group.parameters, scale=6.0 / 4)
    assert close(error.mean().detach(), loss)
    for path, slope in slopes.items():
        down = group.parameters[f"{path}.lora_A.default.weight"]
        up = group.parameters[f"{path}.lora_B.default.weight"]
        assert close(up.grad, 1.5 * slope @ down.detach().T), path
        assert close(down.grad, 1.5 * up.detach().T @ slope), path


def reference(
    prediction: str, batch: dict, lora: dict[str, torch.nn.Parameter], scale: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and dL/dW of every adapted weight, from DDPM eq. 4 and 14 on the merged UNet."""
    family = families.load("tiny:sd", torch.float32)
    paths = [name.removesuffix(".lora_A.default.weight") for name in lora if ".lora_A." in name]
    for path in paths:
        up = lora[f"{path}.lora_B.default.weight"].detach()
        weight = family.denoiser.get_submodule(path).weight
        weight.data += scale * up @ lora[f"{path}.lora_A.default.weight"].detach()
        weight.requires_grad_(True)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    t = torch.tensor([130, 780])
    alpha_bar = torch.cumprod(1 - betas, 0)[t].float().view(2, 1, 1, 1)
    x0 = batch["mean"] + batch["std"] * batch["posterior_noise"]
    xt = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * batch["noise"]
    v = alpha_bar.sqrt() * batch["noise"] - (1 - alpha_bar).sqrt() * x0
    target = batch["noise"] if prediction == "epsilon" else v
    stack = family.text[0]
    captions = [c.replace("[V01]", "z") for c in CAPTIONS]
    ids = stack.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    hidden = stack.encoder(ids).last_hidden_state
    loss = (family.denoiser(xt, t, hidden).sample - target).square().mean()
    loss.backward()
    return loss.detach(), {p: family.denoiser.get_submodule(p).weight.grad for p in paths}


def test_ddpm_noise_and_targets_are_the_schedulers() -> None:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")
    process = Ddpm.from_scheduler(scheduler)
    x0, noise = torch.randn(2, 5, 4, 8, 8).unbind()
    t = process.timesteps(torch.tensor([0.0, 0.2, 0.5, 0.7, 0.9999]), (8, 8))
    assert t.tolist() == [0, 200, 500, 700, 999]
    assert close(process.add_noise(x0, noise, t), scheduler.add_noise(x0, noise, t))
    assert close(process.target(x0, noise, t), scheduler.get_velocity(x0, noise, t))


@pytest.mark.parametrize("dynamic", [False, True], ids=["shift 3", "by resolution"])
def test_flow_noise_is_the_schedulers(dynamic: bool) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    process = replace(Flow.from_scheduler(scheduler), times=Times("uniform"))
    levels = torch.tensor([0.02, 0.2, 0.5, 0.7, 0.9, 0.999])
    t = process.timesteps(levels, (48, 80))
    scheduler.set_timesteps(sigmas=levels.tolist(), mu=calculate_shift(24 * 40))
    assert close(t, scheduler.timesteps)
    x0, noise = torch.randn(2, 6, 16, 48, 80).unbind()
    theirs = scheduler.scale_noise(x0, scheduler.timesteps, noise)
    assert close(process.add_noise(x0, noise, t), theirs)


@pytest.mark.parametrize(
    "times", [Times(), Times("logit-normal", -0.5, 0.7), Times("mode"), Times("cosmap")], ids=str
)
def test_times_have_the_density_they_are_named_for(times: Times) -> None:
    """Against the densities of SD 3's paper, eq. 19 to 21, integrated over small intervals."""
    u = (torch.arange(200_000) + 0.5) / 200_000
    level = times.level(u).double()
    assert level.min() >= 0
    assert level.max() < 1
    assert (level.diff() >= 0).all()
    edges = torch.linspace(0, 1, 41, dtype=torch.float64)
    share = torch.histogram(level, edges).hist / len(u)
    middle = torch.linspace(0, 1, 4_001, dtype=torch.float64)[:-1] + 1 / 8_000
    wanted = density(times, middle).view(40, 100).mean(1) / 40
    assert (share - wanted).abs().max() < 1e-4


def density(times: Times, t: Tensor) -> Tensor:
    if times.density == "uniform":
        return torch.ones_like(t)
    if times.density == "logit-normal":
        normal = torch.distributions.Normal(times.mean, times.std)
        return normal.log_prob(torch.logit(t)).exp() / (t * (1 - t))
    if times.density == "cosmap":
        return 2 / (torch.pi - 2 * torch.pi * t + 2 * torch.pi * t**2)
    # |d/dt f^-1(t)|, where f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u), by bisection.
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(60):
        u = (low + high) / 2
        f = 1 - u - times.scale * ((torch.pi * u / 2).cos() ** 2 - 1 + u)
        low, high = torch.where(f > t, u, low), torch.where(f > t, high, u)
    slope = -1 - times.scale * (1 - torch.pi / 2 * (torch.pi * u).sin())
    return 1 / slope.abs()


PROMPTS = ["a photo of z dog", "z dog in the snow"]


def pipeline_text(family: families.Family) -> dict[str, Tensor]:
    """Text conditions of PROMPTS by the family's pipeline."""
    encode = family.pipeline().encode_prompt
    asked: dict[str, Any] = {f"prompt_{i}": PROMPTS for i in (2, 3)}
    asked |= {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    skip = getattr(family, "clip_skip", 1)
    asked |= {"clip_skip": None if skip == 1 else skip - 1, **t5_length(family)}
    found = encode(PROMPTS, **accepted(encode, asked))
    pooled = [part for part in found[1:] if part is not None and part.ndim == 2 and len(part) == 2]
    return {"text": found[0], **({"pooled": pooled[0]} if pooled else {})}


@pytest.mark.parametrize("name", [*VARIANTS, "sdxl, clip skip 2", "sd3, clip skip 2"])
def test_text_conditions_are_the_pipelines(name: str) -> None:
    """Without emphasis and negative prompts, to which diffusers does not apply its clip_skip."""
    kind, _, skip = name.partition(", clip skip ")
    family = said(f"tiny:{kind}", clip_skip=int(skip)) if skip else VARIANTS[name]()
    tokens = {stack.name: stack.tokenize(PROMPTS) for stack in family.text}
    with torch.no_grad():
        ours, theirs = family.encode_text(tokens), pipeline_text(family)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[part], theirs[part]) for part in ours)


def test_a_clip_is_zeros_where_it_is_absent() -> None:
    """SD 3's paper, section 5.2; diffusers' pipeline cannot read a prompt then."""
    whole = sd3.Family.tiny()
    tokens = {stack.name: stack.tokenize(PROMPTS) for stack in whole.text}
    with torch.no_grad():
        full = whole.encode_text(tokens)
        for absent, columns in (
            (("text_encoder",), slice(0, 32)),
            (("text_encoder_2",), slice(32, 48)),
            (("text_encoder", "text_encoder_2"), slice(0, 48)),
        ):
            part = sd3.Family.tiny(*absent).encode_text(tokens)
            want = {name: state.clone() for name, state in full.items()}
            want["text"][:, :77, columns] = 0
            want["pooled"][:, columns] = 0
            assert all(torch.equal(part[name], want[name]) for name in want), absent


QUIET = {"num_inference_steps": 1, "output_type": "latent"}


@pytest.mark.parametrize("name", ["sd", "sdxl, latents by channel", "sd3", "flux dev"])
def test_latents_are_those_of_the_pipeline_that_starts_from_a_picture(name: str) -> None:
    import diffusers

    family = VARIANTS[name]()
    own = family.pipeline()
    kind = getattr(diffusers, type(own).__name__.replace("Pipeline", "Img2ImgPipeline"))
    pipeline = kind(**own.components)
    adds = "scale_noise" if hasattr(own.scheduler, "scale_noise") else "add_noise"
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with recorded(own.scheduler, adds) as calls:
        source = torch.Generator().manual_seed(2)
        sized = accepted(pipeline.__call__, {"width": 64, "height": 64})
        pipeline("", image=pixels, strength=1.0, generator=source, **sized, **QUIET)
    with torch.no_grad():
        mean, std = family.encode_image(pixels * 2 - 1)
    draw = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
    assert close(mean + std * draw, calls[0][0][0])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_prediction_is_what_the_pipeline_asks_for(name: str) -> None:
    family = VARIANTS[name]()
    pipeline = family.pipeline()
    asked = {"original_size": (80, 96), "crops_coords_top_left": (3, 5), "width": 96, "height": 64}
    asked = accepted(pipeline.__call__, {**asked, **t5_length(family)})
    source = torch.Generator().manual_seed(3)
    with recorded(family.denoiser, "forward") as calls:
        pipeline(PROMPTS[0], guidance_scale=1.0, generator=source, **asked, **QUIET)
    args, given, (theirs,) = calls[0]
    shape = (1, family.vae.config.latent_channels, 8, 12)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    t = (given["timestep"] if "timestep" in given else args[1]) * (1000 if "flux" in name else 1)
    meta = torch.tensor([[80.0, 96.0, 3.0, 5.0, 64.0, 96.0]])
    with torch.no_grad():
        text = family.encode_text({s.name: s.tokenize(PROMPTS[:1]) for s in family.text})
        ours = family.predict(noise, t.expand(1), family.condition(text, meta))
    assert close(flux.pack(ours) if "flux" in name else ours, theirs)


def accepted(function: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that a function takes."""
    return {k: v for k, v in asked.items() if k in inspect.signature(function).parameters}


def t5_length(family: families.Family) -> dict[str, int]:
    lengths = [stack.length for stack in family.text if stack.part == "text_encoder_3"]
    return {"max_sequence_length": lengths[0]} if lengths else {}


@contextlib.contextmanager
def recorded(owner: Any, name: str) -> Iterator[list[tuple[Any, Any, Any]]]:
    """Arguments and results of every call of a method."""
    own = getattr(owner, name)
    calls: list[tuple[Any, Any, Any]] = []

    def called(*args: Any, **kwargs: Any) -> Any:
        made = own(*args, **kwargs)
        calls.append((args, kwargs, made))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, called)
        yield calls


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loss_is_of_the_schedulers_noise_and_target(name: str) -> None:
    """Times, noisy latents, target and mean of squares as in diffusers' training scripts."""
    family = VARIANTS[name]()
    family.process = family.process.tuned(Times("uniform"), None)
    batch = fixed_batch(family)
    x0 = batch["mean"] + batch["std"] * batch["posterior_noise"]
    noise, scheduler = batch["noise"], family.scheduler
    if isinstance(family.process, Ddpm):
        t = torch.tensor([130, 780])
        xt = scheduler.add_noise(x0, noise, t)
        v = family.process.prediction == "v_prediction"
        target = scheduler.get_velocity(x0, noise, t) if v else noise
    else:
        mu = {"mu": calculate_shift(16)} if scheduler.config.use_dynamic_shifting else {}
        scheduler.set_timesteps(sigmas=[0.13, 0.78], **mu)
        t = scheduler.timesteps
        xt = scheduler.scale_noise(x0, t, noise)
        target = noise - x0
    with torch.no_grad():
        predicted = family.predict(xt, t, family.condition(batch["text"], batch["meta"]))
        loss = Objective(family, {"denoiser"}, losses.l2)(batch).mean()
    assert close(loss, torch.nn.functional.mse_loss(predicted, target))


def test_sdxl_is_told_the_photo_and_the_crop(tmp_path: Path) -> None:
    """As train_dreambooth_lora_sdxl.py: the short side is scaled to 64 px, the middle cut out."""
    Image.new("RGB", (100, 80)).save(tmp_path / "wide.png")
    Image.new("RGB", (90, 120)).save(tmp_path / "tall.png")
    plan = CropPlan(((64, 64),), 1, area=(0.7, 1.0), jitter=0.2, seed=0, plain=True)
    whole = (0.0, 0.0, 1.0, 1.0)
    found = []
    for name, size in (("wide", (100, 80)), ("tall", (90, 120))):
        sample = Sample(tmp_path / f"{name}.png", name, size, "", whole, 1.0)
        found.append(cut(sample, plan)[1][0].tolist())
    assert found == [[80, 100, 0, 8, 64, 64], [120, 90, 11, 0, 64, 64]]


def test_no_update_no_change() -> None:
    """At step 0 a LoRA is the base itself."""
    family, plain = (families.load("tiny:sd", torch.float32) for _ in range(2))
    method = Method(Options())
    method.attach(family, CONCEPTS, seed=0)
    batch = fixed_batch(plain)
    ours = Objective(family, {"denoiser"}, losses.l2)(batch)
    assert torch.equal(ours, Objective(plain, {"denoiser"}, losses.l2)(batch))


def test_embedding_moves_its_row_only() -> None:
    from dreamtune.methods.embedding import Method, Options

    family, plain = (families.load("tiny:sd", torch.float32) for _ in range(2))
    method = Method(Options())
    method.attach(family, CONCEPTS, seed=0)
    (group,) = method.groups()
    batch = fixed_batch(plain)
    batch["tokens"] = {s.name: s.tokenize(CAPTIONS) for s in family.text}
    optimizer = torch.optim.AdamW(list(group.parameters.values()), lr=0.1)
    before = {n: p.detach().clone() for n, p in group.parameters.items()}
    Objective(family, method.live(), losses.l2)(batch).mean().backward()
    optimizer.step()
    table = family.text[0].encoder.get_input_embeddings().weight
    old = plain.text[0].encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(old)], old)
    assert all(not torch.equal(p, before[n]) for n, p in group.parameters.items())
    assert {n for n, p in family.denoiser.named_parameters() if p.requires_grad} == set()
