"""Every optimizer by name: it learns, and its checkpoint holds all that it remembers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamtune import checkpoints, optimizers, settings
from dreamtune.errors import Usage
from dreamtune.optimizers import AVERAGES, peak

NAMES = settings.Train.__dataclass_fields__["optimizer"].metadata["choices"]


def library_of(name: str) -> None:
    """Skip where the optional library is not installed."""
    library = {"adamw8bit": "bitsandbytes", "adamw": "torch", "adafactor": "transformers"}
    pytest.importorskip(library.get(name, "pytorch_optimizer"))


def start(name: str) -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    """Two groups, one of zeros as LoRA's up matrices are; 8 bits begin at 4096 values."""
    source = torch.Generator().manual_seed(1)
    parameters = {
        "denoiser.down": torch.nn.Parameter(torch.randn(64, 80, generator=source)),
        "denoiser.up": torch.nn.Parameter(torch.zeros(80, 64)),
        "text.row": torch.nn.Parameter(torch.randn(3, generator=source)),
    }
    rate = peak(name, 1e-2, None)
    members = [[parameters["denoiser.down"], parameters["denoiser.up"]], [parameters["text.row"]]]
    groups = [{"params": m, "lr": rate, "peak": rate, "weight_decay": 0.01} for m in members]
    return parameters, optimizers.make(name, groups)


def work(parameters: dict, optimizer: torch.optim.Optimizer, steps: range) -> float:
    """Updates towards fixed targets; the last loss."""
    for step in steps:
        source = torch.Generator().manual_seed(2)
        loss = torch.zeros(())
        for p in parameters.values():
            loss = loss + (p - torch.randn(p.shape, generator=source)).square().mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (1 - step / 100)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name: str) -> None:
    library_of(name)
    parameters, optimizer = start(name)
    first = work(parameters, optimizer, range(1))
    assert work(parameters, optimizer, range(1, 40)) < first


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_holds_all_that_it_remembers(name: str, tmp_path: Path) -> None:
    library_of(name)
    parameters, optimizer = start(name)
    work(parameters, optimizer, range(7))
    checkpoints.save(tmp_path, 7, parameters, optimizer)
    work(parameters, optimizer, range(7, 14))

    resumed, fresh = start(name)
    checkpoints.restore(tmp_path / "step-000007.safetensors", resumed, fresh)
    work(resumed, fresh, range(7, 14))
    assert all(torch.equal(p, resumed[n]) for n, p in parameters.items())
    assert optimizers.dump(optimizer, parameters)[1] == optimizers.dump(fresh, resumed)[1]


def test_what_averages_has_two_sets_of_weights() -> None:
    library_of("schedule-free")
    for name in AVERAGES:
        parameters, optimizer = start(name)
        work(parameters, optimizer, range(5))
        trained = parameters["denoiser.up"].detach().clone()
        optimizer.eval()
        assert not torch.equal(trained, parameters["denoiser.up"])


def test_peaks() -> None:
    assert peak("adamw", 1e-4, None) == 1e-4
    assert peak("adamw", 1e-4, 3e-4) == 3e-4
    assert peak("adamw", 1e-4, 3e-4, group=5e-6) == 5e-6
    assert peak("lion", 1e-4, None) == pytest.approx(2e-5)
    assert peak("prodigy", 1e-4, None, group=5e-6) == 1.0
    assert peak("prodigy", 1e-4, 0.5) == 0.5


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytorch_optimizer", None)
    with pytest.raises(Usage, match=r"lion needs pytorch_optimizer.*dreamtune\[optimizers\]"):
        optimizers.make("lion", [])
