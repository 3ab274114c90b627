"""The training maths against a reference written from the papers, in fp32 to 1e-5."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dreamtune import families, losses
from dreamtune.diffusion import Ddpm, Flow, Times
from dreamtune.methods import Concept
from dreamtune.methods.lora import Method, Options
from dreamtune.objective import Objective

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
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

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
