"""Checkpoints: what is kept, what is passed over, and what a run was made on."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dreamtune import checkpoints, fsops
from dreamtune.errors import Damaged, NonFinite
from tests.faults import EVERYTHING

Tensors, Said = dict[str, torch.Tensor], dict[str, str]

State = tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]


def state(*values: float) -> State:
    """A parameter with an optimizer that has made an update."""
    parameter = torch.nn.Parameter(torch.tensor(values))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    return {"w": parameter}, optimizer


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    parameters, optimizer = state(1.0, 2.0)
    checkpoints.save(tmp_path, 3, parameters, optimizer)
    others, fresh = state(0.0, 0.0)
    found = checkpoints.latest(tmp_path)
    assert found and checkpoints.step_of(found) == 3
    checkpoints.restore(found, others, fresh)
    assert torch.equal(others["w"], parameters["w"])
    old, new = optimizer.state[parameters["w"]], fresh.state[others["w"]]
    assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, *state(1.0))
    found = checkpoints.latest(tmp_path)
    assert found
    wide, optimizer = state(1.0, 2.0)  # would take one value for both
    with pytest.raises(Damaged, match="other parameters"):
        checkpoints.restore(found, wide, optimizer)
    with pytest.raises(Damaged, match="other parameters"):
        checkpoints.restore(found, {"v": wide["w"]}, optimizer)


def without_optimizer(tensors: Tensors, said: Said) -> None:
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        del tensors[name]


HARM: dict[str, Callable[[Tensors, Said], object]] = {
    "no optimizer": without_optimizer,
    "no metadata": lambda tensors, said: said.clear(),
    "torn metadata": lambda tensors, said: said.update(numbers='{"optimizer": {'),
    "other metadata": lambda tensors, said: said.update(numbers="3"),
    "other numbers": lambda tensors, said: said.update(numbers='{"tensors": 4}'),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_a_state_with_a_part_missing_is_refused(
    harm: Callable[[Tensors, Said], object], tmp_path: Path
) -> None:
    """By somebody who also wrote the hash anew: nothing is ever trained from half a state."""
    checkpoints.save(tmp_path, 1, *state(1.0))
    path = tmp_path / "step-000001.safetensors"
    with safe_open(path, "pt") as file:
        said = dict(file.metadata())
    tensors = load_file(path)
    harm(tensors, said)
    fsops.write_safetensors(path, tensors, said)
    note = {"step": 1, "sha256": fsops.hash_file(path)}
    fsops.write_json(path.with_suffix(".json"), note)
    assert checkpoints.latest(tmp_path) == path
    with pytest.raises(Damaged, match="is not a state that was saved; start again with --fresh"):
        checkpoints.restore(path, *state(1.0))


def test_a_note_that_would_never_end_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "step-000001.json")
    assert checkpoints.latest(tmp_path) is None


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, *state(1.0))
    before = names(tmp_path)
    with pytest.raises(NonFinite, match="w is not finite at step 2"):
        checkpoints.save(tmp_path, 2, *state(float("nan")))
    assert names(tmp_path) == before


def test_only_the_newest_stay_and_no_litter(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000):
        checkpoints.save(tmp_path, step, *state(1.0))
    (tmp_path / "step-000004.safetensors").touch()  # one whose note was removed before a kill
    (tmp_path / "step-x.json").touch()
    checkpoints.save(tmp_path, 1_000_001, *state(1.0))
    stems = ["step-1000000", "step-1000001"]
    assert names(tmp_path) == [s + end for s in stems for end in (".json", ".safetensors")]


def test_what_it_was_made_on_is_kept_with_it(tmp_path: Path) -> None:
    here = {"device": "cpu", "precision": "fp32", "processes": 1}
    checkpoints.save(tmp_path, 1, *state(1.0), here)
    found = checkpoints.latest(tmp_path)
    assert found and checkpoints.made_on(found) == here
    checkpoints.save(tmp_path, 2, *state(1.0))
    found = checkpoints.latest(tmp_path)
    assert found and checkpoints.made_on(found) == {}


def test_saves_damage_and_new_starts_in_any_order(tmp_path: Path) -> None:
    """The newest that is whole is found, and saving never removes it for one that is not."""
    for seed in range(5000 if EVERYTHING else 100):
        rng = random.Random(seed)
        folder, step, kept = tmp_path / str(seed), 0, {0: True}  # step -> whole
        parameters, optimizer = state(1.0)
        for _ in range(rng.randint(3, 9)):
            if rng.random() < 0.6:
                step += rng.randint(1, 3)
                checkpoints.save(folder, step, parameters, optimizer)
                below = [s for s in sorted(kept) if 0 < s < step][-1:]
                kept = {0: True, **{s: kept[s] for s in below}, step: True}
            else:
                newest = max(kept)
                kept[newest] = not newest  # 0 is the start, which is always there
                for path in folder.glob(f"step-{newest:06d}.safetensors"):
                    path.write_bytes(path.read_bytes()[:-1])
                step = max(s for s, whole in kept.items() if whole)
            found = checkpoints.latest(folder)
            assert (checkpoints.step_of(found) if found else 0) == step, seed
        shutil.rmtree(folder, ignore_errors=True)
