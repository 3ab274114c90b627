"""Two processes as one: the same result as a single one, one voice, one writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreamtune import processes
from dreamtune.artifacts import Artifact
from dreamtune.errors import Usage
from dreamtune.store import Store
from tests import forked

pytestmark = pytest.mark.slow
TRAIN = ["train", "--base", "tiny:sd", "--device", "cpu", "--rank", "4", "--variants", "2"]
TRAIN += ["--learning-rate", "0.01", "--accumulation", "2", "--caption-dropout", "0.2"]
TRAIN += ["--prior", "teacher", "--ema", "0.9"]


def start(args: list[str], folder: Path) -> subprocess.Popen[str]:
    """`dreamtune *args` twice, side by side."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "dreamtune", *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def newest(folder: Path) -> Artifact:
    artifact = Store.open(folder / "artifacts").newest("adapter")
    assert artifact
    return artifact


def losses(artifact: Artifact) -> list[float]:
    lines = (artifact.path / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_two_give_what_one_gives_with_twice_the_batch(
    make_prep: Callable[..., Artifact], tmp_path: Path
) -> None:
    make_prep()
    steps = ["--steps", "5", "--preview-every", "3", "--save-every", "2", "--name", "dog"]
    process = start([*TRAIN, *steps, "--batch", "1"], tmp_path)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert out == "artifacts/adapter/dog/v001\n"
    assert "error" not in err and err.count("learning rate") == 1
    two = newest(tmp_path)
    assert forked.run([*TRAIN, *steps, "--batch", "2"], tmp_path) == 0
    one = newest(tmp_path)
    assert one.key != two.key and sorted(one.files) == sorted(two.files)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    file = "pytorch_lora_weights.safetensors"
    ours, theirs = load_file(two.path / file), load_file(one.path / file)
    assert all(torch.allclose(ours[n], t, rtol=1e-3, atol=1e-5) for n, t in theirs.items())
    assert two.verify(deep=True) == []


def test_told_to_end_they_save_together_and_go_on_as_if_nothing_had_been(
    make_prep: Callable[..., Artifact], tmp_path: Path
) -> None:
    make_prep()
    args = [*TRAIN, "--steps", "8", "--batch", "1", "--checkpoint-every", "2"]
    process = start(args, tmp_path)
    home = tmp_path / "artifacts/adapter/dog"
    while process.poll() is None and not any(home.glob(".work-*/checkpoints/step-*.json")):
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=500)
    assert process.returncode != 0 and "--resume to go on" in err
    assert not list(home.glob("v*"))
    again = start([*args, "--resume"], tmp_path)
    assert again.communicate(timeout=500) and again.returncode == 0
    resumed = newest(tmp_path)
    whole = start([*args, "--store", "calm"], _with_a_copy(tmp_path))
    assert whole.communicate(timeout=500) and whole.returncode == 0
    calm = Store.open(tmp_path / "calm").newest("adapter")
    assert calm and calm.id == resumed.id


def _with_a_copy(folder: Path) -> Path:
    """The folder, with another store that holds the photos only."""
    import shutil

    (folder / "calm").mkdir()
    shutil.copytree(folder / "artifacts/prep", folder / "calm/prep")
    shutil.copy(folder / "artifacts/journal.jsonl", folder / "calm")
    return folder


def test_a_number_of_processes_without_a_launcher_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Usage, match="WORLD_SIZE is 2 without RANK, MASTER_ADDR, MASTER_PORT"):
        processes.join("cpu")


def test_alone_nothing_waits() -> None:
    assert (processes.count(), processes.rank(), processes.first()) == (1, 0, True)
    assert processes.share("said") == "said"
    with processes.in_turn():
        processes.wait()
