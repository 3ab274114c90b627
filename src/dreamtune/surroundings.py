"""What else than recipe and parents decides the bytes of an artifact: libraries and threads."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

LIBRARIES = (
    "accelerate", "diffusers", "dreamtune", "numpy", "peft", "pillow", "torch", "transformers",
)  # fmt: skip


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that an artifact's bytes depend on; none is imported."""
    from importlib.metadata import PackageNotFoundError, version

    from . import __version__

    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "dreamtune": __version__}


def thread_count() -> int:
    """Threads that sums are split over: OMP_NUM_THREADS, else the CPUs this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdecimal():
        return int(asked)
    mine = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(mine(0)) if mine else os.cpu_count() or 1


def surroundings() -> dict[str, Any]:
    """What else than recipe and parents decides the bytes of an artifact."""
    return {"libraries": library_versions(), "threads": thread_count()}
