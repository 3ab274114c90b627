"""How far a training has come, by the minutes trained and not by its steps, since a machine may be
shared; and its checkpoints.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tools.mini.team import Team

WARM_UP = 200  # steps
LEAST = 0.02  # of the learning rate, at the end
SAVE_EVERY = 300  # seconds


@dataclass
class Progress:
    step: int = 0
    seconds: float = 0.0

    def rate(self, minutes: float) -> float:
        """Linear warm-up by steps, cosine to LEAST by minutes trained: a factor in (0, 1]."""
        done = min(1.0, self.seconds / (60 * minutes))
        cosine = LEAST + (1 - LEAST) * (1 + math.cos(math.pi * done)) / 2
        return min(1.0, (self.step + 1) / WARM_UP) * cosine

    @contextmanager
    def counted(self, team: Team, work: Path) -> Iterator[None]:
        """One step, begun when WORK/PAUSE is not there; the time that it took counts."""
        while (work / "PAUSE").exists():
            time.sleep(1)
        started = time.monotonic()
        yield
        seconds = torch.tensor(time.monotonic() - started, dtype=torch.float64)
        team.average([seconds])  # or their learning rates would part
        self.step += 1
        self.seconds += seconds.item()


def save(state: dict[str, Any], path: Path) -> None:
    """Whole or not at all."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load(path: Path, device: str) -> dict[str, Any]:
    return torch.load(path, map_location=device, weights_only=True)
