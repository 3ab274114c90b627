"""Memory and precision: what saves the one or the other changes no gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamtune import devices, families, losses, plugins
from dreamtune.objective import Objective
from tests.test_parity import CAPTIONS, CONCEPTS, fixed_batch


def gradients(name: str, method: str, saving: bool) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """The errors and gradients of one batch, and the bytes that autograd kept meanwhile."""
    family = families.load(f"tiny:{name}", torch.float32)
    module = plugins.load("dreamtune.methods", method)
    work = module.Method(module.Options(**({"dropout": 0.2} if method == "lora" else {})))
    work.attach(family, CONCEPTS, seed=0)
    if saving:
        devices.save_memory(family, work.live())
    batch = fixed_batch(family)
    batch["tokens"] = {stack.name: stack.tokenize(CAPTIONS) for stack in family.text}
    objective = Objective(family, work.live(), losses.l2).train()
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        errors = objective(batch)
    errors.sum().backward()
    found = [p.grad for group in work.groups() for p in group.parameters.values()]
    assert all(g is not None for g in found)
    return errors.detach(), found, kept


CASES = [(name, "lora") for name in plugins.names("dreamtune.families")] + [("sdxl", "embedding")]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_gradient_checkpointing_changes_no_bit_and_keeps_less(name: str, method: str) -> None:
    errors, plain, much = gradients(name, method, saving=False)
    again, saved, little = gradients(name, method, saving=True)
    assert torch.equal(errors, again)
    assert all(torch.equal(a, b) for a, b in zip(plain, saved, strict=True))
    assert little < 0.7 * much


def test_tf32_is_used_when_asked_for() -> None:
    try:
        devices.make_exact(tf32=True)
        assert torch.get_float32_matmul_precision() == "high"
        devices.make_exact()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_preview_that_fails_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dreamtune.stages.preview import preview

    family = families.load("tiny:sd", torch.float32)
    family.vae = None
    preview(family, CONCEPTS[0], tmp_path, 3, 64, seed=0)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("warning: no preview at step 3: ")
