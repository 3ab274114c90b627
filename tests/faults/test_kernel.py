"""Killed at every system call, and refused at any: what the tape shows, by the kernel's account.

Skipped where strace is missing or may not follow a process; the tape needs neither.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from dreamtune import fsops
from dreamtune.errors import Resources
from dreamtune.store import Store
from tests import forked
from tests.faults import job, kernel, some, tape
from tests.faults.tape import Op

ERRORS = {"write": "ENOSPC", "fsync": "EIO", "mkdir": "EDQUOT", "rename": "EROFS"}
KILLED = -9


@pytest.fixture(autouse=True)
def strace() -> None:
    if not kernel.usable():
        pytest.skip("strace is missing, or may not follow a process")


def run(folder: Path, *options: str) -> tuple[int, Store, list[Op]]:
    """The job in a child under strace: its exit code, its store, and what it promised."""
    store, notes = fsops.make_folder(folder / "store"), folder / "notes"
    process = forked._context().Process(target=_child, args=(store, notes))
    process.start()
    code = kernel.follow(process, folder / "trace", *options)
    return code, Store(store), tape.read(notes)


def _child(store: Path, notes: Path) -> None:
    note = tape.notebook(notes)
    kernel.wait()
    try:
        job.job(Store(store), note)
    except Resources as e:
        os._exit(e.code)
    os._exit(0)


@dataclass(frozen=True)
class Calm:
    """The job as it goes when nothing happens: its system calls, and what it promises."""

    calls: list[tuple[str, int, str]]
    marks: list[Op]

    def promised(self, marks: list[Op]) -> job.Promised:
        """What a job had promised that came as far as these marks, and maybe to the next one."""
        return job.Promised.after([*marks, *self.marks[len(marks) :]], len(marks))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    code, _, marks = run(folder)
    assert code == 0
    return Calm(kernel.calls(folder / "trace", folder / "store"), marks)


def test_the_kernel_sees_what_the_tape_sees(tmp_path: Path) -> None:
    ops, ids = job.taped(tmp_path / "taped")
    code, store, _ = run(tmp_path)
    assert code == 0 and {a.id for a in store.list()} == {*ids}
    assert kernel.changes(tmp_path / "trace", store.path) == kernel.taped(ops)


def test_killed_at_any_call(calm: Calm, tmp_path: Path) -> None:
    for call, number, path in some(calm.calls, 20):
        folder = tmp_path / f"{call}-{number}"
        inject = f"inject={call}:signal=KILL:when={number}"
        code, store, marks = run(folder, "-e", inject)
        assert code == KILLED, (inject, path)
        goes_on(store, calm.promised(marks), inject)
        shutil.rmtree(folder)


def test_refused_at_any_call(calm: Calm, tmp_path: Path) -> None:
    cases = [one for one in calm.calls if one[0] in ERRORS and not one[2].endswith(".lock")]
    for call, number, path in some(cases, 10):
        folder = tmp_path / f"{call}-{number}"
        inject = f"inject={call}:error={ERRORS[call]}:when={number}"
        code, store, marks = run(folder, "-e", inject)
        assert code in (0, 15), (inject, path)
        promised = calm.promised(marks)
        promised.newest = set()  # a version may be finished whose line in the journal did not fit
        goes_on(store, promised, inject)
        shutil.rmtree(folder)


def goes_on(store: Store, promised: job.Promised, what: str) -> None:
    """Nothing promised is lost, and the job ends as ever, with nothing left lying about."""
    assert not job.violations(store.path, promised), what
    job.job(store)
    assert not any(store.verify(deep=True).values()), what
    assert not [p for p in store.path.rglob(".*") if p.name != ".lock"], what
