"""Power cuts and kills at every point of a job: nothing that was promised is lost."""

from __future__ import annotations

from pathlib import Path

from dreamtune import fsops
from dreamtune.store import Store
from tests.faults.disk import KILLED, Disk
from tests.faults.job import job, losses, losses_on_the_way_back, states, taped


def test_the_tape_has_seen_everything(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ops, _ = taped(tmp_path)
    disk = Disk(tmp_path / "empty")
    for op in ops:
        disk.apply(op)
    files = {}
    for path in (tmp_path / "store").rglob("*"):
        data = None if path.is_dir() else path.read_bytes() if path.name != ".lock" else b""
        files[path.relative_to(tmp_path / "store").as_posix()] = data
    assert disk.survivors(KILLED) == files


def test_no_power_cut_loses_what_was_promised(tmp_path: Path) -> None:
    assert not list(losses(tmp_path, 250))


def test_nor_does_a_second_one_on_the_way_back(tmp_path: Path) -> None:
    assert not list(losses_on_the_way_back(tmp_path, cuts=5, count=20))


def test_the_same_job_ends_the_same_after_any_power_cut(tmp_path: Path) -> None:
    ops, ids = taped(tmp_path)
    for crash, folder in states(fsops.make_folder(tmp_path / "before"), ops, 40):
        store = Store(folder)
        assert job(store) == ids, crash
        assert not any(store.verify(deep=True).values()), crash
        litter = [p for p in folder.rglob(".*") if p.name != ".lock"]
        assert not litter, (crash, litter)
