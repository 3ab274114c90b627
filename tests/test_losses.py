"""Losses and weightings against the formulae of the papers and of the scripts people know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor
from torch.nn import functional

from dreamtune import families, losses, weightings
from dreamtune.diffusion import Ddpm, Flow
from dreamtune.objective import Objective
from tests.test_parity import fixed_batch

STEPS = torch.tensor([3, 250, 600, 999])
GAMMA = 5.0


def scheduler(prediction: str, zero: bool = False) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", prediction_type=prediction, rescale_betas_zero_snr=zero
    )


def noised(seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 4, 8, 8, generator=source).unbind()


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() <= 1e-5 * theirs.norm())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_is_that_of_diffusers(prediction: str) -> None:
    """train_text_to_image.py, and train_dreambooth.py without prior preservation."""
    theirs = scheduler(prediction)
    snr = compute_snr(theirs, STEPS)
    weights = torch.stack([snr, GAMMA * torch.ones_like(STEPS)], dim=1).min(dim=1)[0]
    weights = weights / (snr if prediction == "epsilon" else snr + 1)
    guess, target = noised()
    loss = functional.mse_loss(guess, target, reduction="none")
    loss = loss.mean(dim=list(range(1, len(loss.shape)))) * weights

    ours = weightings.min_snr(Ddpm.from_scheduler(theirs), STEPS, GAMMA)
    assert close(ours * losses.mean(losses.l2(guess, target)), loss)


def test_min_snr_at_zero_terminal_snr_is_finite() -> None:
    for prediction, last in (("epsilon", 1.0), ("v_prediction", 0.0)):
        process = Ddpm.from_scheduler(scheduler(prediction, zero=True))
        weights = weightings.min_snr(process, STEPS, GAMMA)
        assert process.snr(STEPS)[-1] == 0
        assert weights.isfinite().all() and weights[-1] == last


def test_min_snr_with_prior_preservation_weights_each_half_by_its_own_noise() -> None:
    """diffusers' train_dreambooth.py multiplies the subject's errors, which it has chunked, by the
    weights of all timesteps: a batch of one is broadcast silently, a larger one fails."""
    family = families.load("tiny:sd", torch.float32)
    batch = fixed_batch(family)
    process = family.process
    t = process.timesteps(batch["u"], (8, 8))
    weight = torch.tensor([1.0, 0.7])  # the subject's row, then the class's
    plain = Objective(family, {"denoiser"}, losses.l2)(batch).detach()
    ours = Objective(
        family,
        {"denoiser"},
        losses.l2,
        weighting=lambda process, t: weightings.min_snr(process, t, GAMMA),
    )(batch)
    snr = process.snr(t)
    halves = torch.minimum(snr, torch.tensor(GAMMA)) / snr
    assert halves[0] != halves[1]
    assert close((ours * weight).sum().detach(), plain[0] * halves[0] + 0.7 * plain[1] * halves[1])


def test_v_target_is_the_error_in_v() -> None:
    process = Ddpm.from_scheduler(scheduler("epsilon"))
    guess, noise = noised()
    x0 = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    xt = process.add_noise(x0, noise, STEPS)
    alpha, sigma = process.coefficients(STEPS, xt)
    v_guess = alpha * guess - sigma * process.clean(xt, guess, STEPS)
    v = replace(process, prediction="v_prediction").target(x0, noise, STEPS)
    error = losses.mean(losses.l2(guess, noise)) * weightings.v_target(process, STEPS)
    assert close(error, losses.mean(losses.l2(v_guess, v)))


def test_huber_is_that_of_sd_scripts() -> None:
    """`--loss_type huber --huber_schedule snr --huber_c 0.1`."""
    process = Ddpm.from_scheduler(scheduler("epsilon"))
    sigmas = ((1.0 - process.alphas_cumprod[STEPS]) / process.alphas_cumprod[STEPS]) ** 0.5
    huber_c = ((1 - 0.1) / (1 + sigmas) ** 2 + 0.1).view(-1, 1, 1, 1)
    guess, target = noised()
    theirs = 2 * huber_c * (torch.sqrt((guess - target) ** 2 + huber_c**2) - huber_c)
    alpha, sigma = process.coefficients(STEPS, guess)
    assert close(losses.huber(guess, target, sigma / alpha), theirs)


@pytest.mark.parametrize("process", ["epsilon", "v_prediction", "flow"])
def test_a_right_prediction_gives_the_picture_back(process: str) -> None:
    made = Flow() if process == "flow" else Ddpm.from_scheduler(scheduler(process))
    t = torch.tensor([3, 250, 600, 900])
    x0, noise = noised()
    xt = made.add_noise(x0, noise, t)
    assert torch.allclose(made.clean(xt, made.target(x0, noise, t), t), x0, atol=1e-4)


def test_a_mask_says_where_errors_count() -> None:
    family = families.load("tiny:sd", torch.float32)
    batch = fixed_batch(family)
    objective = Objective(family, {"denoiser"}, losses.l2)
    plain = objective(batch)
    assert torch.equal(objective({**batch, "mask": torch.ones(2, 1, 8, 8)}), plain)
    left = torch.zeros(2, 1, 8, 8)
    left[..., :4] = 1.0
    halves = [objective({**batch, "mask": m}) for m in (left, 1 - left)]
    assert close(halves[0] + halves[1], plain)

    guess, target = noised()
    guess.requires_grad_()
    losses.mean(losses.l2(guess, target), left[:1]).sum().backward()
    assert guess.grad is not None
    assert guess.grad[..., :4].all() and not guess.grad[..., 4:].any()


def test_the_weight_of_a_photo_reaches_the_loss() -> None:
    from accelerate import Accelerator

    from dreamtune import loop
    from dreamtune.data.batches import SUBJECT, Order, Table, make_batch

    family = families.load("tiny:sd", torch.float32)
    fixed = fixed_batch(family)
    images = [{n: fixed[n][i : i + 1] for n in ("mean", "std", "meta")} for i in (0, 1)]
    texts = [{"text": fixed["text"]["text"][i : i + 1]} for i in (0, 1)]
    table = Table(images, texts, "text", {SUBJECT: [0, 1]}, [1.0, 3.0])
    picks = Order([[0, 1]], 2, 1, 0).picks(0)
    batch = make_batch(table, picks, 0, {SUBJECT: 1 / 2})
    objective = Objective(family, {"denoiser"}, losses.l2)
    errors = objective(batch).detach()
    expected = sum((1.0, 3.0)[p.sample] * e / 2 for p, e in zip(picks, errors, strict=True))

    weight = family.denoiser.conv_out.weight.requires_grad_()
    groups = [{"params": [weight], "peak": 0.1, "start": 0}]
    settings = {"rate": lambda step: 1.0, "steps": range(1), "seed": 0, "clip": 1.0}
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    steps = loop.train(
        objective, optimizer, lambda step: [batch], accelerator=accelerator, **settings
    )
    assert close(next(steps).loss, expected)
