"""Running a command and saying what it took."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "dreamtune")


@dataclass(frozen=True)
class Cost:
    """What a finished process took. `marks`: seconds until a text first stood on its stderr."""

    wall: float  # s
    cpu: float  # s, user and system, children included
    memory: float  # MiB, largest resident set
    output: str  # stdout
    marks: dict[str, float]


def measure(
    command: Sequence[str], environment: Mapping[str, str], marks: Mapping[str, bytes] | None = None
) -> Cost:
    """Run `command` to its end. SystemExit with the end of its stderr when it fails."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=out, stderr=subprocess.PIPE
        )
        assert process.stderr
        said = b""
        seen: dict[str, float] = {}
        while chunk := os.read(process.stderr.fileno(), 1 << 16):
            said += chunk
            now = time.monotonic() - start
            seen |= {k: now for k, text in (marks or {}).items() if k not in seen and text in said}
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        if process.returncode:
            end = said[-3000:].decode(errors="replace")
            raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{end}")
        out.seek(0)
        text = out.read().decode(errors="replace")
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, text, seen)


def threads(count: int) -> dict[str, str]:
    """Environment in which a process computes on `count` threads, and fetches nothing."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {**{name: str(count) for name in names}, "HF_HUB_OFFLINE": "1"}


def circumstances() -> dict[str, object]:
    """Where and with what a measurement was taken."""
    return {
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "bytecode": _has_bytecode(),
        "load": os.getloadavg()[0],
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "?")


def _has_bytecode() -> bool:
    """Whether the libraries are compiled; else each import compiles them anew."""
    import importlib.util

    spec = importlib.util.find_spec("torch")
    return bool(spec and spec.cached and Path(spec.cached).exists())
