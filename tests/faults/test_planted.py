"""The harness itself: five bugs, planted one at a time, that it must not miss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dreamtune import checkpoints, console, draws, fsops
from tests.faults.job import changed_by_a_kill, losses, unsaid

STATES = 250


def test_a_sync_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsops, "_sync", lambda fd: None)
    assert any(losses(tmp_path, STATES))


def test_folders_that_are_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsops, "sync_folder", lambda path: None)
    assert any(losses(tmp_path, STATES))


def test_a_manifest_before_what_it_speaks_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fsops.rename

    def early(src: Path, dst: Path) -> None:
        """Rename first and seal afterwards: the manifest stands over bytes not yet on disk."""
        real(src, dst)
        seal(dst)

    seal = fsops.seal
    monkeypatch.setattr(fsops, "seal", lambda folder: None)
    monkeypatch.setattr(fsops, "rename", early)
    assert any(losses(tmp_path, STATES))


def test_old_checkpoints_that_go_before_the_new_one_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoints.save

    def save(folder: Path, step: int, *state: Any) -> None:
        for old in checkpoints._notes(folder)[: -checkpoints.KEEP + 1]:
            fsops.remove_tree(old)
        real(folder, step, *state)

    monkeypatch.setattr(checkpoints, "save", save)
    assert any(losses(tmp_path, STATES))


def test_draws_from_the_global_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "generator", lambda *purpose: torch.default_generator)
    assert changed_by_a_kill(tmp_path)


def test_a_fall_back_that_is_not_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "warn", lambda text: None)
    assert unsaid(tmp_path)


def test_without_a_bug_there_is_nothing_to_find(tmp_path: Path) -> None:
    assert changed_by_a_kill(tmp_path / "kill") == [] and unsaid(tmp_path / "said") == []
