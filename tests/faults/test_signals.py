"""Signals in every phase: the state is saved where there is one, and the next run goes on."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreamtune.artifacts import Artifact
from dreamtune.store import Store
from tests import forked
from tests.conftest import draw_photo
from tests.faults import some

TRAIN = ["train", "--base", "tiny:sd", "--steps", "6", "--batch", "2", "--variants", "1"]
TRAIN += ["--device", "cpu", "--name", "rex", "--rank", "2", "--preview-every", "3"]
TRAIN += ["--checkpoint-every", "2"]
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
STAGES = "dreamtune.stages."
# phase: what is called in it, how often before the signal, and the update that is saved
PHASES: dict[str, tuple[str, int, int | None]] = {
    "import": (STAGES + "training:import_libraries", 0, None),
    "load": ("dreamtune.devices:load", 0, None),
    "encode": (STAGES + "encode:Encoder.encode", 0, None),
    "step": (STAGES + "lesson:Lessons.batches", 3, 3),
    "rehearsal": (STAGES + "steps:Steps.rehearse_saving", 0, None),
    "preview": (STAGES + "steps:preview", 1, 3),
    "checkpoint": (STAGES + "steps:Steps.checkpoint", 2, 4),
    "export": (STAGES + "result:describe", 0, 6),
}


def when_called(place: str, after: int, act: Callable[[], object]) -> None:
    """In the child: act at a call of a function, "module:Class.function"."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), 0

    def called(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            act()
        return real(*args, **options)

    setattr(owner, name, called)


def send(number: int, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with photos, and beside it the id of the adapter that a calm run makes."""
    folder = tmp_path_factory.mktemp("signals")
    photos = folder / "photos"
    photos.mkdir()
    for n in range(3):
        draw_photo(n).save(photos / f"{n}.png")
    args = ["prep", str(photos), "--class", "dog", "--threshold", "0", "--name", "rex"]
    assert forked.run(args, folder) == 0, (folder / "stderr").read_text()
    shutil.copytree(folder / "artifacts", folder / "before")
    assert forked.run(TRAIN, folder) == 0, (folder / "stderr").read_text()
    (folder / "id").write_text(newest(folder).id)
    return folder


def world(calm: Path, tmp_path: Path) -> Path:
    shutil.copytree(calm / "before", tmp_path / "artifacts")
    return tmp_path


def newest(folder: Path) -> Artifact:
    found = Store.open(folder / "artifacts").newest("adapter")
    assert found
    return found


def steps(folder: Path) -> list[int]:
    """Updates that checkpoints hold."""
    notes = (folder / "artifacts").glob("adapter/rex/.work-*/checkpoints/step-*.json")
    return sorted(int(note.stem.removeprefix("step-")) for note in notes)


CASES = [(phase, number) for phase in PHASES for number in ENDS]


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "number"), some(CASES, 6))
def test_a_signal_in_any_phase(phase: str, number: int, calm: Path, tmp_path: Path) -> None:
    folder = world(calm, tmp_path)
    place, after, saved = PHASES[phase]
    act = functools.partial(send, number)
    code = forked.run(TRAIN, folder, prepare=functools.partial(when_called, place, after, act))
    said = (folder / "stderr").read_text()
    assert "Traceback" not in said
    if phase == "export":  # it is nearly there, and finishes
        assert code == 0, said
    else:
        assert code == ENDS[signal.Signals(number)], said
        assert steps(folder)[-1:] == ([saved] if saved else [])
        assert forked.run([*TRAIN, *(["--resume"] if saved else [])], folder) == 0
    assert newest(folder).id == (calm / "id").read_text()
    assert not any(Store.open(folder / "artifacts").verify(deep=True).values())


@pytest.mark.slow
def test_the_second_signal_ends_at_once_and_harms_nothing(calm: Path, tmp_path: Path) -> None:
    folder = world(calm, tmp_path)
    act = functools.partial(send, signal.SIGINT, 2)
    place = STAGES + "lesson:Lessons.batches"
    code = forked.run(TRAIN, folder, prepare=functools.partial(when_called, place, 5, act))
    assert code == -signal.SIGINT and steps(folder) == [2, 4]
    assert forked.run([*TRAIN, "--resume"], folder) == 0
    assert newest(folder).id == (calm / "id").read_text()


@pytest.mark.slow
def test_usr1_saves_and_goes_on(calm: Path, tmp_path: Path) -> None:
    folder = world(calm, tmp_path)
    act = functools.partial(send, signal.SIGUSR1)
    look = functools.partial(when_called, STAGES + "result:describe", 0, keep_steps)
    wish = functools.partial(when_called, STAGES + "lesson:Lessons.batches", 5, act)
    assert forked.run(TRAIN, folder, prepare=functools.partial(both, wish, look)) == 0
    assert (folder / "seen").read_text() == "[4, 5]"
    assert newest(folder).id == (calm / "id").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["import", "load", "encode"])
def test_usr1_before_the_first_update_changes_nothing(
    phase: str, calm: Path, tmp_path: Path
) -> None:
    folder = world(calm, tmp_path)
    act = functools.partial(send, signal.SIGUSR1)
    prepare = functools.partial(when_called, *PHASES[phase][:2], act)
    assert forked.run(TRAIN, folder, prepare=prepare) == 0


def keep_steps() -> None:
    Path("seen").write_text(str(steps(Path())))


def both(first: Callable[[], object], second: Callable[[], object]) -> None:
    first()
    second()


@pytest.mark.slow
def test_a_terminal_that_closes(calm: Path, tmp_path: Path) -> None:
    """ssh is cut: SIGHUP, and stderr is no place to write to any more."""
    folder = world(calm, tmp_path)
    act = functools.partial(send, signal.SIGHUP)
    hang_up = functools.partial(when_called, STAGES + "lesson:Lessons.batches", 3, act)
    prepare = functools.partial(both, lost_terminal, hang_up)
    assert forked.run(TRAIN, folder, prepare=prepare) == 129
    assert steps(folder)[-1] == 3


@pytest.mark.slow
def test_a_log_that_nobody_reads_any_more_does_not_end_a_run(calm: Path, tmp_path: Path) -> None:
    folder = world(calm, tmp_path)
    assert forked.run(TRAIN, folder, prepare=lost_reader) == 0
    assert newest(folder).id == (calm / "id").read_text()


def lost_terminal() -> None:
    """stderr becomes a terminal, of which the other end closes when the first update is drawn."""
    leader, follower = os.openpty()
    os.dup2(follower, 2)
    os.environ["TERM"] = "xterm"
    when_called(STAGES + "lesson:Lessons.batches", 2, functools.partial(os.close, leader))


def lost_reader() -> None:
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    os.close(read)


@pytest.mark.slow
@pytest.mark.parametrize("number", some(list(ENDS), 1))
def test_prep_ends_with_its_workers_and_goes_on(number: int, calm: Path, tmp_path: Path) -> None:
    for n in range(40):
        path = tmp_path / "photos" / f"{n:02d}.png"
        path.parent.mkdir(exist_ok=True)
        draw_photo(n).save(path)
    args = ["prep", "photos", "--class", "dog", "--threshold", "0", "--workers", "2"]
    act = functools.partial(send, number)
    place = "dreamtune.data.album:_remember"
    prepare = functools.partial(when_called, place, 0, act)
    process = forked.start(args, tmp_path, prepare=prepare)
    process.join(120)
    assert process.exitcode == ENDS[signal.Signals(number)], (tmp_path / "stderr").read_text()
    deadline = time.monotonic() + 20
    while workers_of(process.pid or 0) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers_of(process.pid or 0)
    assert forked.run(args, tmp_path) == 0, (tmp_path / "stderr").read_text()
    assert not any(Store.open(tmp_path / "artifacts").verify(deep=True).values())


def workers_of(pid: int) -> list[str]:
    """Processes that were started by this one and are still there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"pid={pid}".encode() in stat.with_name("cmdline").read_bytes():
                found.append(stat.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_sample_leaves_no_litter(calm: Path, tmp_path: Path) -> None:
    shutil.copytree(calm / "artifacts", tmp_path / "artifacts")
    args = ["sample", "[V01] dog", "-n", "2", "--batch", "1", "--steps", "2", "--device", "cpu"]
    act = functools.partial(send, signal.SIGTERM)
    place = "dreamtune.stages.sample:_write"
    prepare = functools.partial(when_called, place, 1, act)
    assert forked.run(args, tmp_path, prepare=prepare) == 143, (tmp_path / "stderr").read_text()
    assert not list((tmp_path / "artifacts" / "samples").rglob("*.tmp-*"))
    assert forked.run(args, tmp_path) == 0
