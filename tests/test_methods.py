"""What each method promises beside the matrix: options, exactness, and what its files hold."""

from __future__ import annotations

import pytest
import torch

from dreamtune import families, plugins
from dreamtune.methods import Concept
from tests.test_matrix import predict

CONCEPTS = [Concept("[V01]", "dog", "rex")]
METHODS = plugins.names("dreamtune.methods")


def attached(base: str, method: str, **options: object) -> tuple[families.Family, object]:
    """A tiny base with a method in it, the options as given."""
    family = families.load(f"tiny:{base}", torch.float32)
    module = plugins.load("dreamtune.methods", method)
    made = module.Method(module.Options(**options))
    made.attach(family, CONCEPTS, seed=0, teacher=True)
    return family, made


@pytest.mark.parametrize("base", plugins.names("dreamtune.families"))
@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_is_the_untrained_base_bit_for_bit(base: str, method: str) -> None:
    family, made = attached(base, method)
    parameters = [p for group in made.groups() for p in group.parameters.values()]
    with torch.no_grad():
        for p in parameters:
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
    trained = predict(family, "a [V01] dog")
    parameters[0].requires_grad_(False)
    with made.teacher(family):
        taught = predict(family, "a dog")
    assert torch.equal(taught, predict(families.load(f"tiny:{base}", torch.float32), "a dog"))
    assert torch.equal(trained, predict(family, "a [V01] dog"))
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
