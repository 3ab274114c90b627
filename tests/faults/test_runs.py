"""The real commands, cut off or refused at any change that they make to the disk."""

from __future__ import annotations

import errno
import functools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dreamtune.artifacts import Artifact
from dreamtune.errors import UserError
from dreamtune.store import Store
from tests import forked
from tests.conftest import draw_photo
from tests.faults import some, tape
from tests.faults.job import Promised, states, violations
from tests.faults.tape import Op

pytestmark = pytest.mark.slow

SMALL = ["--base", "tiny:sd", "--batch", "2", "--variants", "1", "--device", "cpu"]
COMMANDS = {
    "prep": ["prep", "photos", "--class", "dog", "--threshold", "0", "--name", "rex"],
    "train": ["train", *SMALL, "--steps", "5", "--rank", "2", "--checkpoint-every", "2"],
    "sample": ["sample", "[V01] dog", "-n", "2", "--steps", "1", "--device", "cpu"],
}


@dataclass(frozen=True)
class Taped:
    """A command, the store before it, all that it changed, and the id of what it made."""

    args: list[str]
    before: Path  # a store
    photos: Path
    ops: list[Op]
    id: str

    def world(self, folder: Path, store: Path) -> Path:
        """A folder to run the command in, with this store."""
        folder.mkdir(parents=True)
        shutil.copytree(store, folder / "artifacts")
        (folder / "photos").symlink_to(self.photos)
        return folder


@pytest.fixture(scope="module")
def taped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Taped]:
    """Each command, in a store with what those before it made."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "photos").mkdir()
    for n in range(3):
        draw_photo(n).save(folder / "photos" / f"{n}.png")
    (folder / "artifacts").mkdir()
    found = {}
    for name, args in COMMANDS.items():
        before = Path(shutil.copytree(folder / "artifacts", folder / f"before-{name}"))
        prepare = functools.partial(record, folder / "artifacts", folder / name)
        assert forked.run(args, folder, prepare=prepare) == 0, (folder / "stderr").read_text()
        made = Store(folder / "artifacts").in_order()[-1]
        ops = tape.read(folder / name)
        found[name] = Taped(args, before, folder / "photos", ops, made.id)
    return found


def record(root: Path, file: Path) -> None:
    """In the child: write down changes, and what is promised on the way."""
    from dreamtune import checkpoints
    from dreamtune.store import Draft

    inline()
    note = tape.record(root, file)
    commit, save = Draft.commit, checkpoints.save

    def committed(draft: Draft, run: dict[str, Any]) -> Artifact:
        artifact = commit(draft, run)
        note(("mark", "made", artifact.id))
        note(("mark", "newest", artifact.id))
        return artifact

    def saved(folder: Path, step: int, *args: Any, **options: Any) -> None:
        save(folder, step, *args, **options)
        if step:  # not a rehearsal
            note(("mark", "saved", folder.parent.name.removeprefix(".work-"), step))

    Draft.commit = committed  # type: ignore[method-assign]
    checkpoints.save = saved  # type: ignore[assignment]


def inline() -> None:
    """Photos are decoded in this process, where the tape sees what is written."""
    from dreamtune.data import decode

    def run(work: Any, jobs: Any, **limits: Any) -> Iterator[Any]:
        for job in jobs:
            result = decode._attempt(work, job)
            if isinstance(result, UserError):  # as decode.run does
                raise result
            yield job, result

    decode.run = run  # type: ignore[assignment]


def finish(run: Taped, folder: Path) -> str:
    """Give the command again, as its user would; the id."""
    code = 10
    if run.args[0] == "train":
        code = forked.run([*run.args, "--resume"], folder)
    if code == 10:  # nothing to resume
        code = forked.run(run.args, folder)
    assert code == 0, (folder / "stderr").read_text()
    store = Store(folder / "artifacts")
    assert not any(store.verify(deep=True).values())
    return store.in_order()[-1].id


@pytest.mark.parametrize("name", COMMANDS)
def test_no_power_cut_loses_what_was_promised(
    name: str, taped: dict[str, Taped], tmp_path: Path
) -> None:
    run = taped[name]
    before = Path(shutil.copytree(run.before, tmp_path / "before"))
    found = [
        f"{crash}: {problem}"
        for crash, folder in states(before, run.ops, 60, most=1500)
        for problem in violations(folder, Promised.after(run.ops, crash.done))
    ]
    assert found == []


@pytest.mark.parametrize("name", COMMANDS)
def test_after_a_power_cut_the_same_command_ends_in_the_same_bytes(
    name: str, taped: dict[str, Taped], tmp_path: Path
) -> None:
    run = taped[name]
    before = Path(shutil.copytree(run.before, tmp_path / "before"))
    for i, (crash, store) in enumerate(states(before, run.ops, 2, most=40)):
        folder = run.world(tmp_path / f"after-{i}", store)
        assert finish(run, folder) == run.id, crash


REFUSALS = [(errno.ENOSPC, True), (errno.EIO, False), (errno.EROFS, True), (errno.EDQUOT, False)]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_refuses(name: str, taped: dict[str, Taped], tmp_path: Path) -> None:
    run = taped[name]
    changes = sum(op[0] != "mark" for op in run.ops)
    cases = [(n, *refusal) for n in range(1, changes + 1) for refusal in REFUSALS]
    for number, code, for_good in some(cases, 3, most=60):
        folder = run.world(tmp_path / f"{number}-{code}", run.before)
        fail = functools.partial(refuse, folder / "artifacts", number, code, for_good)
        got = forked.run(run.args, folder, prepare=fail)
        said = (folder / "stderr").read_text()
        assert got in (0, 15) and "Traceback" not in said, (number, code, said)
        assert got == 0 or said.splitlines()[-1].startswith("error: cannot "), said
        assert finish(run, folder) == run.id, (number, code)


def refuse(root: Path, number: int, code: int, for_good: bool) -> None:
    inline()
    tape.fail_at(root, number, code, for_good)
