"""`--loss perceptual`: which rows it sees, what it measures, and that it can be trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreamtune import families, losses, perceptual
from dreamtune.artifacts import Artifact
from dreamtune.data.encoder import WEIGHTS, builtin_folder
from dreamtune.data.tower import Tower
from dreamtune.objective import Objective
from dreamtune.store import Store
from tests import forked
from tests.test_parity import fixed_batch


@pytest.fixture(scope="module")
def features() -> perceptual.Features:
    return perceptual.load(torch.device("cpu"))


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("base", ["sd", "sd3"])
def test_rows_with_little_noise_are_partly_judged_as_pictures(
    base: str, features: perceptual.Features
) -> None:
    family = families.load(f"tiny:{base}", torch.float32)
    batch = fixed_batch(family)
    batch["u"] = torch.tensor([0.1, 0.9])
    process = family.process
    plain = Objective(family, {"denoiser"}, losses.l2)(batch)
    ours = Objective(family, {"denoiser"}, losses.l2, features=features)(batch)
    assert torch.equal(ours[1], plain[1]) and ours[0] != plain[0]

    # The first row again, from the definitions.
    x0 = batch["mean"] + batch["std"] * batch["posterior_noise"]
    t = process.timesteps(batch["u"], tuple(x0.shape[-2:]))
    alpha, sigma = process.coefficients(t, t.float())
    assert sigma[0] < alpha[0] and sigma[1] > alpha[1]
    xt = process.add_noise(x0, batch["noise"], t)
    with torch.no_grad():
        cond = family.condition(batch["text"], batch["meta"])
        guess = process.clean(xt, family.predict(xt, t, cond), t)
        looks = perceptual.distance(
            features, family.decode_image(guess[:1]), family.decode_image(x0[:1])
        )
    assert torch.allclose(ours[0], 0.7 * looks[0] + 0.3 * plain[0], rtol=1e-3)


def test_gradients_pass_the_decoder(features: perceptual.Features) -> None:
    """Compared with a difference quotient of the loss."""
    family = families.load("tiny:sd", torch.float32)
    batch = {**fixed_batch(family), "u": torch.tensor([0.1, 0.2])}
    family.vae.requires_grad_(False)
    family.denoiser.requires_grad_(False)
    weight = family.denoiser.conv_out.bias.requires_grad_()
    objective = Objective(family, {"denoiser"}, losses.l2, features=features)
    objective(batch).sum().backward()
    assert weight.grad is not None and family.vae.decoder.conv_in.weight.grad is None
    step = 1e-3
    with torch.no_grad():
        ends = []
        for side in (1, -1):
            weight[0] += side * step
            ends.append(objective(batch).sum())
            weight[0] -= side * step
    slope = (ends[0] - ends[1]) / (2 * step)
    assert torch.allclose(weight.grad[0], slope, rtol=2e-2)
    assert abs(slope) > 1e-4


def test_the_distance_is_that_of_lpips_without_weights() -> None:
    """Zhang et al., equation 1, place by place."""
    a, b = noise(1, 2, 3, 4, 4), noise(2, 2, 3, 4, 4)
    total = 0.0
    for y in range(4):
        for x in range(4):
            one, two = (v[0, :, y, x] / v[0, :, y, x].norm() for v in (a, b))
            total += float((one - two).square().sum()) / 16
    found = perceptual.distance(lambda pixels: [pixels], a, b)
    assert found.shape == (2,) and float(found[0]) == pytest.approx(total, rel=1e-5)
    assert perceptual.distance(lambda pixels: [pixels], a, a).tolist() == [0, 0]


def test_the_tower_has_features_of_every_size(features: perceptual.Features) -> None:
    pixels = (255 * torch.rand(1, 224, 224, 3, generator=torch.Generator().manual_seed(0))).byte()
    found = features(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    assert [x.shape[-1] for x in found] == [112, 56, 28, 14, 7]
    tower = Tower.read(builtin_folder() / WEIGHTS)
    with torch.no_grad():
        last = tower._conv("conv_head", found[-1]).permute(0, 2, 3, 1)
    assert torch.allclose(last, tower(pixels), atol=1e-4)
    small = features(noise(3, 1, 3, 64, 48).clamp(-1, 1))  # any size will do
    assert all(x.isfinite().all() for x in small)


def test_vgg16_is_used_where_torchvision_has_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.models.vgg import cfgs, make_layers

    file = tmp_path / "hub/checkpoints" / perceptual.VGG
    file.parent.mkdir(parents=True)
    layers = make_layers(cfgs["D"]).state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in layers.items()}, file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    perceptual.load(torch.device("cpu"))
    assert "is not torchvision's" in capsys.readouterr().err  # its bytes are not those promised
    monkeypatch.setattr(perceptual, "_is_torchvisions", lambda path: True)
    found = perceptual.load(torch.device("cpu"))(noise(4, 1, 3, 64, 64))
    assert [x.shape[1] for x in found] == [64, 128, 256, 512, 512]
    assert [x.shape[-1] for x in found] == [64, 32, 16, 8, 4]
    assert "VGG16" in capsys.readouterr().err


def test_a_run(make_prep: Callable[..., Artifact], tmp_path: Path) -> None:
    make_prep()
    tiny = ["--base", "tiny:sd", "--steps", "2", "--batch", "2", "--variants", "1", "--rank", "2"]
    args = ["train", *tiny, "--device", "cpu", "--loss", "perceptual"]
    assert forked.run(args, tmp_path) == 0, (tmp_path / "stderr").read_text()
    assert "perceptual loss by the built-in image tower" in (tmp_path / "stderr").read_text()
    assert Store.open(tmp_path / "artifacts").newest("adapter")
