"""Workers that crash, hang and balloon: one job is lost, the others are not."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import pytest

from dreamtune.data import decode
from dreamtune.data.photos import Rejected
from dreamtune.errors import Resources


def job(what: str) -> str:
    """What a decoder may do."""
    if what == "crash":
        ctypes.string_at(0)
    if what == "hang":
        time.sleep(60)
    if what == "balloon":
        bytearray(4 << 30)
    if what == "exit":
        os._exit(3)
    if what == "refuse":
        raise Rejected("image.type", "words")
    if what == "surprise":
        raise KeyError("unexpected")
    if what == "full":
        raise Resources("cannot write")
    return f"{what} {os.getpid()}"


def run(jobs: list[str], **limits: Any) -> list[Any]:
    limits = {"workers": 2, "seconds": 20.0, "memory": 1 << 30} | limits
    return [result for _, result in decode.run(job, jobs, **limits)]


def codes(results: list[Any]) -> list[str]:
    return [r.code if isinstance(r, Rejected) else r.split()[0] for r in results]


def test_each_trouble_costs_one_job() -> None:
    jobs = ["a", "crash", "b", "balloon", "c", "refuse", "exit", "d", "surprise", "e"]
    results = run(jobs)
    expected = ["a", "image.crash", "b", "image.memory", "c", "image.type", "image.crash"]
    assert codes(results) == [*expected, "d", "image.damaged", "e"]
    assert "SIGSEGV" in results[1].detail
    assert "exit code 3" in results[6].detail


def test_a_hang_ends_in_time() -> None:
    started = time.monotonic()
    results = run(["a", "hang", "b", "c"], seconds=2.0)
    assert codes(results) == ["a", "image.timeout", "b", "c"]
    assert time.monotonic() - started < 30


def test_order_is_kept_and_both_workers_work() -> None:
    jobs = [f"n{i}" for i in range(50)]
    results = run(jobs)
    assert codes(results) == jobs
    assert len({result.split()[1] for result in results}) == 2


def test_a_full_disk_is_everybodys_trouble() -> None:
    with pytest.raises(Resources, match="cannot write"):
        run(["a", "full", "b"])


def test_nothing_to_do_starts_nothing() -> None:
    assert run([], workers=0) == []


def test_no_worker_outlives_the_run() -> None:
    results = decode.run(job, iter(["a", "hang"]), workers=2, seconds=30.0, memory=1 << 30)
    first = next(results)[1]
    pid = int(first.split()[1])  # type: ignore[union-attr]
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_cannot_start_is_not_the_photos_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode, "START_SECONDS", 0.0)
    with pytest.raises(Resources, match="does not start"):
        run(["a"])
