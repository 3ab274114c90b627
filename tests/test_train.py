"""`dreamtune train`: what it leaves, what it says, and what it refuses."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from dreamtune.artifacts import Artifact
from dreamtune.errors import NonFinite
from dreamtune.store import Store
from tests import forked
from tests.faults.test_signals import when_called

TINY = ["train", "--base", "tiny:sd", "--steps", "4", "--batch", "2", "--device", "cpu"]


@pytest.fixture
def folder(make_prep: Callable[..., Artifact], tmp_path: Path) -> Path:
    make_prep()
    return tmp_path


def newest(folder: Path) -> Artifact:
    artifact = Store.open(folder / "artifacts").newest("adapter")
    assert artifact
    return artifact


def test_an_adapter_holds_exactly_this(folder: Path) -> None:
    args = [*TINY, "--save-every", "2", "--preview-every", "3", "--name", "rex", "--rank", "4"]
    assert forked.run(args, folder) == 0, (folder / "stderr").read_text()
    artifact = newest(folder)
    assert (folder / "stdout").read_text() == f"artifacts/adapter/rex/{artifact.version}\n"
    names = ["pytorch_lora_weights.safetensors", "rex.safetensors"]
    steps = [f"steps/000002/{name}" for name in names]
    expected = ["adapter.json", "recipe.toml", "previews/000003.png", *names, *steps]
    assert sorted(artifact.files) == sorted(expected)
    assert sorted(artifact.run) == ["log.jsonl", "run.json"]
    log = [json.loads(line) for line in (artifact.path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    facts = artifact.read_json("adapter.json")
    (concept,) = facts["concepts"]
    assert (concept["identifier"], concept["class_word"], facts["steps"]) == ("[V01]", "dog", 4)
    assert concept["bindings"][0]["word"] != "[V01]"
    with safe_open(artifact.path / "rex.safetensors", "pt") as file:
        keys, metadata = list(file.keys()), file.metadata()
        alphas = [float(file.get_tensor(key)) for key in keys if key.endswith(".alpha")]
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert (metadata["ss_network_dim"], metadata["ss_output_name"]) == ("4", "rex")
    assert len(alphas) * 3 == len(keys) and set(alphas) == {4.0}


def test_the_run_can_be_made_again_from_its_own_recipe(folder: Path) -> None:
    assert forked.run([*TINY, "--method", "embedding"], folder) == 0
    first = newest(folder)
    again = ["train", "--recipe", str(first.path / "recipe.toml")]
    assert forked.run(again, folder) == 0, (folder / "stderr").read_text()
    assert newest(folder).id == first.id
    assert "up to date" in (folder / "stderr").read_text()


def test_json_is_all_there_is_on_stdout(folder: Path) -> None:
    assert forked.run([*TINY, "--json"], folder) == 0
    said = json.loads((folder / "stdout").read_text())
    assert said["id"] == newest(folder).id
    assert set(said["run"]["seconds"]) == {"import", "load", "encode", "rehearse", "steps", "save"}


def test_a_dry_run_changes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert forked.run([*TINY, "--dry-run"], folder) == 0
    after = {p for p in folder.rglob("*") if p.name not in ("stdout", "stderr")}
    assert after == set(before)
    assert (folder / "stdout").read_text() == ""
    assert "4 updates of 2 pictures" in (folder / "stderr").read_text()


def test_a_tracker_is_told_of_every_update(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert forked.run([*TINY, "--tracker", "tensorboard"], folder) == 0
    artifact = newest(folder)
    (run,) = (folder / "runs").iterdir()
    assert run.name.startswith("dog-")
    events = EventAccumulator(str(run)).Reload()
    log = [json.loads(line) for line in (artifact.path / "log.jsonl").read_text().splitlines()]
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(row["step"], pytest.approx(row["loss"])) for row in log]
    assert forked.run(TINY, folder) == 0  # it is no part of what decides the result
    assert newest(folder).id == artifact.id and "up to date" in (folder / "stderr").read_text()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_tracker_that_breaks_does_not_end_a_run(kind: str, folder: Path) -> None:
    (folder / "runs").write_text("a file is in its way")
    assert forked.run([*TINY, "--tracker", kind], folder) == 0, (folder / "stderr").read_text()
    assert (folder / "stderr").read_text().count(f"{kind} shows nothing") == 1
    assert newest(folder).files


def test_a_changed_photo_stops_the_run_before_step_one(folder: Path) -> None:
    photo = next(folder.glob("artifacts/prep/dog/v001/images/*.png"))
    data = bytearray(photo.read_bytes())
    data[-20] ^= 1
    photo.write_bytes(data)
    assert forked.run(TINY, folder) == 12
    assert photo.name in (folder / "stderr").read_text()


def test_a_diverging_run_stops_before_anything_bad_is_kept(tmp_path: Path) -> None:
    import torch

    from dreamtune import checkpoints
    from dreamtune.loop import Step
    from dreamtune.stages.log import Log

    log = Log(tmp_path / "log.jsonl", 0, lambda step: f"{step}.png")
    for number, loss in enumerate((0.5, float("nan"), float("nan")), start=1):
        log.add(Step(number, torch.tensor(loss), torch.tensor(1.0), 1e-4))
    with pytest.raises(NonFinite, match=r"loss is nan at step 2: .* the photos were 2\.png"):
        log.add(Step(4, torch.tensor(0.5), torch.tensor(1.0), 1e-4))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1  # what was sound is kept
    weight = torch.nn.Parameter(torch.tensor([1.0, float("inf")]))
    with pytest.raises(NonFinite, match="up is not finite at step 2"):
        checkpoints.save(tmp_path / "c", 2, {"up": weight}, torch.optim.AdamW([weight]))
    assert not (tmp_path / "c").exists()


def break_export(after: int) -> None:
    """In the child: from this call on, an adapter cannot be exported."""
    act = functools.partial(_raise, ValueError("what is trained has no name in this layout"))
    when_called("dreamtune.methods.lora:Method.export", after, act)


def _raise(error: Exception) -> None:
    raise error


def test_what_cannot_be_saved_is_known_before_step_one(folder: Path) -> None:
    prepare = functools.partial(break_export, 0)
    assert forked.run([*TINY, "--steps", "3"], folder, prepare=prepare) == 1
    said = (folder / "stderr").read_text()
    assert "no name in this layout" in said and "updates will take" not in said
    assert not list((folder / "artifacts").rglob("*.rehearsal*"))


def test_what_fails_beside_the_training_costs_no_update(folder: Path) -> None:
    args = [*TINY, "--steps", "5", "--save-every", "3", "--name", "kept"]
    assert forked.run(args, folder, prepare=functools.partial(break_export, 1)) == 1
    assert "step 3 is saved, and --resume goes on from there" in (folder / "stderr").read_text()
    assert forked.run([*args, "--resume"], folder) == 0
    assert "going on after step 3 of 5" in (folder / "stderr").read_text()


def test_a_last_update_that_diverges_leaves_no_adapter(folder: Path) -> None:
    """The loss of a step is that of the weights before it, so only the weights can tell."""
    wild = ["--steps", "3", "--learning-rate", "10", "--weight-decay", "1"]
    assert forked.run([*TINY, *wild], folder) == 14, (folder / "stderr").read_text()
    assert "is not finite at step 3" in (folder / "stderr").read_text()
    assert Store.open(folder / "artifacts").list("adapter") == []


def note_timesteps(file: Path) -> None:
    """In the child: write down what the objective noises by, a line a micro-batch."""
    from dreamtune.diffusion import Ddpm

    original = Ddpm.timesteps

    def noted(self: Ddpm, u: Any, size: tuple[int, int]) -> Any:
        times = original(self, u, size)
        with file.open("a") as lines:
            print(*times.tolist(), file=lines)
        return times

    Ddpm.timesteps = noted  # type: ignore[method-assign]


def test_a_run_that_diverges_says_what_it_looked_at(folder: Path) -> None:
    wild = ["--steps", "8", "--learning-rate", "10", "--weight-decay", "1"]
    wild += ["--accumulation", "2", "--prior", "teacher"]
    note = functools.partial(note_timesteps, folder / "times")
    assert forked.run([*TINY, *wild], folder, prepare=note) == 14
    said = (folder / "stderr").read_text()
    step = int(re.search(r"the loss is nan at step (\d+)", said)[1])  # type: ignore[index]
    named = re.findall(r"\.png at timestep (\d+)", said)
    lines = (folder / "times").read_text().splitlines()[2:]  # those before are of the rehearsal
    updates = [lines[n : n + 2] for n in range(0, len(lines), 2)]
    subjects = [time for line in updates[step - 1] for time in line.split()[:2]]
    assert len(named) == 4 and named == subjects


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--base", "nope"], 10, ["'nope'", "dreamtune base list"]),
        (["--base", "tiny:sdx"], 2, ["'sdx'", "did you mean 'sdxl'"]),
        (["--base", "someone/model"], 16, ["cannot fetch someone/model"]),
        (["--method", "lroa"], 2, ["'lroa'", "did you mean 'lora'"]),
        (["--rank", "0"], 2, ["--rank 0", "at least 1"]),
        (["--method", "embedding", "--rank", "4"], 2, ["--rank belongs to method lora"]),
        (["--stpes", "3"], 2, ["--stpes", "--steps"]),
        (["--base", "tiny:sd", "--resolution", "70"], 2, ["70", "multiple of 16"]),
        (["--base", "tiny:sd3", "--min-snr-gamma", "5"], 2, ["--min-snr-gamma", "noise or v"]),
        (["--set", "train.learing_rate=1"], 2, ["learing_rate", "learning_rate"]),
        (["--learning-rate", "nan"], 2, ["--learning-rate"]),
        (["--name", "../x"], 2, ["'../x'", "cannot be a name"]),
        (["--name", ""], 2, ["''", "cannot be a name"]),
        (["no-such-prep"], 10, ["no-such-prep"]),
        (["--base", "tiny:sd", "--resume"], 10, ["nothing to resume"]),
        (["--base", "tiny:sd", "--resume", "--fresh"], 2, ["--resume", "--fresh"]),
        (["--base", "tiny:sd", "--precision", "fp16", "--device", "cpu"], 2, ["fp16", "bf16"]),
        (["--base", "."], 10, ["no model_index.json"]),
    ],
)
def test_a_wrong_start_is_one_clear_line(
    args: list[str], code: int, words: list[str], folder: Path
) -> None:
    assert forked.run(["train", *args], folder) == code
    lines = (folder / "stderr").read_text().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and all(word in errors[0] for word in words), lines
    assert (folder / "stdout").read_text() == ""


def test_nothing_prepared_yet(tmp_path: Path) -> None:
    assert forked.run(["train"], tmp_path) == 10
    assert "dreamtune prep" in (tmp_path / "stderr").read_text()
