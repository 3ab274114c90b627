"""The platter is simulated: waiting for a real one would take most of the time."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_real_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
