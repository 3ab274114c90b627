"""Killed anywhere and resumed, a run ends in the bytes of one that was never touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from dreamtune import fsops
from dreamtune.artifacts import Artifact
from dreamtune.store import Store
from tests import forked
from tests.faults import some

SETTINGS = ["--base", "tiny:sd", "--steps", "10", "--batch", "2", "--accumulation", "3"]
SETTINGS += ["--variants", "2", "--checkpoint-every", "2", "--save-every", "4", "--device", "cpu"]
METHODS = {
    "lora": ["--method", "lora", "--rank", "4", "--dropout", "0.1", "--learning-rate", "0.01"],
    "embedding": ["--method", "embedding", "--learning-rate", "0.05"],
    "dreambooth": ["--method", "dreambooth", "--train-text", "--learning-rate", "0.001"],
    "pivotal": ["--method", "lora", "--train-token", "--vectors", "2", "--rank", "4"],
}
SHORT = ["--base", "tiny:sd", "--steps", "6", "--batch", "2", "--checkpoint-every", "1"]
SHORT += ["--variants", "2", "--device", "cpu"]
OPTIONS = {
    "accumulation": ["--accumulation", "3"],
    "prior images": ["--prior", "images", "--num-class-images", "4"],
    "prior teacher": ["--prior", "teacher"],
    "average": ["--ema", "0.9"],
    "chances": ["--caption-dropout", "0.5", "--set", "train.noise_offset=0.1"],
    "warm-up": ["--schedule", "restarts", "--warmup", "2", "--min-snr-gamma", "5"],
    "prodigy": ["--optimizer", "prodigy", "--learning-rate", "1"],
    "adafactor": ["--optimizer", "adafactor"],
    "lion": ["--optimizer", "lion"],
    "schedule-free": ["--optimizer", "schedule-free"],
    "all at once": [
        *["--accumulation", "2", "--prior", "images", "--num-class-images", "4", "--ema", "0.9"],
        *["--caption-dropout", "0.5", "--warmup", "2", "--preview-every", "3"],
    ],
}
UNFREEZING = {
    "lora": ["--train-text", "--unfreeze", "1:all@0.5", "--unfreeze-denoiser", "1:2@0.3"],
    "dreambooth": ["--unfreeze", "1:all@0.5", "--unfreeze-denoiser", "0:all@0.3"],
    "pivotal": ["--unfreeze-denoiser", "0:all@0.5"],
}
CELLS = {f"{m}, {name}": (m, asked) for name, asked in OPTIONS.items() for m in METHODS}
CELLS |= {f"{method}, unfreezing": (method, asked) for method, asked in UNFREEZING.items()}


def train(method: str) -> list[str]:
    return ["train", *SETTINGS, *METHODS[method]]


@pytest.fixture
def photos(make_prep: Callable[..., Artifact], tmp_path: Path) -> Path:
    make_prep()
    return tmp_path


def world(photos: Path, name: str) -> Path:
    """A copy of the prepared store in a folder of its own."""
    folder = photos / name
    shutil.copytree(photos / "artifacts", folder / "artifacts")
    return folder


def finish(folder: Path, method: str) -> Artifact:
    """Run until it is done, resuming what there is to resume."""
    for _ in range(3):
        if forked.run([*train(method), "--resume"], folder) in (0, 10):
            break
    code = forked.run(train(method), folder)
    assert code == 0, (folder / "stderr").read_text()
    store = Store.open(folder / "artifacts")
    artifact = store.newest("adapter")
    assert artifact and store.verify(deep=True).keys()
    assert not any(store.verify(deep=True).values())
    return artifact


def newest(folder: Path) -> Artifact:
    artifact = Store.open(folder / "artifacts").newest("adapter")
    assert artifact
    return artifact


def payload(artifact: Artifact) -> dict[str, str]:
    files = {**artifact.files, **artifact.run}
    return {name: entry["sha256"] for name, entry in files.items() if name != "run.json"}


@pytest.mark.slow
@pytest.mark.parametrize("cell", some(CELLS, 6))
def test_killed_twice_in_one_run(cell: str, photos: Path) -> None:
    method, asked = CELLS[cell]
    command = ["train", *SHORT, *METHODS[method], *asked]
    calm, folder = world(photos, "calm"), world(photos, "killed")
    assert forked.run(command, calm, calls=photos / "calls") == 0, (calm / "stderr").read_text()
    late = int((photos / "calls").read_text()) - 12  # between the checkpoints of the last updates
    assert forked.run(command, folder, kill_at=late) == -signal.SIGKILL
    assert forked.run([*command, "--resume"], folder, kill_at=9) == -signal.SIGKILL
    assert forked.run([*command, "--resume"], folder) == 0, (folder / "stderr").read_text()
    assert "going on after step" in (folder / "stderr").read_text()
    assert payload(newest(folder)) == payload(newest(calm))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "embedding"])
def test_killed_at_any_rename_and_resumed(method: str, photos: Path) -> None:
    calm = world(photos, "calm")
    assert forked.run(train(method), calm, calls=photos / "calls") == 0, (
        calm / "stderr"
    ).read_text()
    whole = Store.open(calm / "artifacts").newest("adapter")
    assert whole
    renames = int((photos / "calls").read_text())
    for point in some(range(1, renames + 1), 5):
        folder = world(photos, f"killed-{point}")
        assert forked.run(train(method), folder, kill_at=point) == -signal.SIGKILL
        resumed = finish(folder, method)
        assert resumed.id == whole.id, point
        assert payload(resumed) == payload(whole), point


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first(number: int, photos: Path) -> None:
    many = [*train("lora"), "--steps", "3000", "--checkpoint-every", "100000"]
    process = forked.start(many, photos)
    log = wait_for(photos / "artifacts/adapter/dog", "*/log.jsonl")
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert "--resume" in (photos / "stderr").read_text()
    notes = list(log.parent.glob("checkpoints/step-*.json"))
    assert len(notes) == 1
    assert forked.run(many, photos) == 17  # neither silently anew nor silently on
    assert "interrupted after step" in (photos / "stderr").read_text()


def wait_for(folder: Path, pattern: str) -> Path:
    for _ in range(600):
        found = [p for p in folder.glob(f".*{pattern[1:]}") if p.stat().st_size]
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"no {pattern} in {folder}")


@pytest.mark.slow
def test_the_same_commands_give_the_same_ids(photos: Path) -> None:
    prompts = ["sample", "[V01] dog", "-n", "2", "--steps", "2", "--device", "cpu"]
    ids = []
    for name in ("first", "second"):
        folder = world(photos, name)
        assert forked.run(train("lora"), folder) == 0
        assert forked.run(prompts, folder) == 0, (folder / "stderr").read_text()
        store = Store.open(folder / "artifacts")
        ids.append([a.id for a in store.list()])
    assert ids[0] == ids[1]
    assert forked.run(train("lora"), photos / "first") == 0
    assert "up to date" in (photos / "first" / "stderr").read_text()


@pytest.mark.slow
def test_what_the_cache_holds_from_other_runs_decides_nothing(photos: Path) -> None:
    ids = []
    for name, before in (("first", []), ("second", [["--precision", "bf16"]])):
        folder = world(photos, name)
        for more in before:
            assert forked.run([*train("lora"), *more], folder) == 0
        assert forked.run(train("lora"), folder) == 0
        artifact = Store.open(folder / "artifacts").newest("adapter")
        assert artifact
        ids.append(artifact.id)
    assert ids[0] == ids[1]


def test_nothing_to_resume(photos: Path) -> None:
    assert forked.run([*train("lora"), "--resume"], photos) == 10
    assert "nothing to resume" in (photos / "stderr").read_text()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_loudly(photos: Path) -> None:
    calm, folder = world(photos, "calm"), world(photos, "killed")
    assert forked.run(train("lora"), calm) == 0
    assert forked.run(train("lora"), folder, kill_at=17) == -signal.SIGKILL
    notes = folder.glob("artifacts/adapter/dog/.work-*/checkpoints/*.json")
    newest = max(notes).with_suffix(".safetensors")  # one without a note was never finished
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    assert forked.run([*train("lora"), "--resume"], folder) == 0
    assert "is damaged" in (folder / "stderr").read_text()
    whole = Store.open(calm / "artifacts").newest("adapter")
    assert whole and payload(finish(folder, "lora")) == payload(whole)


@pytest.fixture
def interrupted(photos: Path) -> Path:
    """A world in which a run was killed after a checkpoint."""
    assert forked.run([*train("lora"), "--name", "rex"], photos, kill_at=18) == -signal.SIGKILL
    assert list(photos.glob("artifacts/adapter/rex/.work-*/checkpoints/*.json"))
    return photos


def test_other_settings_are_named_when_there_is_nothing_to_resume(interrupted: Path) -> None:
    other = [*train("lora"), "--name", "rex", "--steps", "11", "--resume"]
    assert forked.run(other, interrupted) == 10
    said = (interrupted / "stderr").read_text()
    assert "the interrupted run differs: train.steps was 10, is 11;" in said


@pytest.mark.slow
def test_a_run_does_not_go_on_elsewhere_without_a_word(interrupted: Path) -> None:
    for note in interrupted.glob("artifacts/adapter/rex/.work-*/checkpoints/step-*.json"):
        path = note.with_suffix(".safetensors")
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        made_on = json.loads(metadata["made_on"])
        assert made_on == {"device": "cpu", "precision": "fp32", "processes": 1}
        metadata["made_on"] = json.dumps({**made_on, "device": "NVIDIA H100", "processes": 8})
        fsops.write_safetensors(path, load_file(path), metadata)
        fsops.write_json(note, {**json.loads(note.read_text()), "sha256": fsops.hash_file(path)})
    again = [*train("lora"), "--name", "rex", "--resume"]
    assert forked.run(again, interrupted) == 2
    said = (interrupted / "stderr").read_text()
    assert "device was NVIDIA H100, is cpu, processes was 8, is 1;" in said
    assert forked.run([*again, "--allow-drift"], interrupted) == 0
    artifact = Store.open(interrupted / "artifacts").newest("adapter")
    assert artifact and len(artifact.read_json("run.json")["drift"]) == 2
