"""log.jsonl: what each update did."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import fsops
from dreamtune.errors import NonFinite

if TYPE_CHECKING:
    from dreamtune.loop import Step

FLUSH = 10  # updates whose losses are read at once, so that a GPU is not waited for at each


class Log:
    """A line an update. Values stay on the device until some are due."""

    def __init__(self, path: Path | None, start: int) -> None:
        """`start`: updates done; what an interrupted run logged after them is dropped.

        path: None in a process that only watches.
        """
        self.path = path
        self.waiting: list[Step] = []
        self.shown: dict[str, float] = {}
        if path is None:
            return
        with contextlib.suppress(FileNotFoundError):
            lines = path.read_bytes().splitlines()[:start]  # a power cut can leave any bytes behind
            fsops.write_bytes(path, b"".join(line + b"\n" for line in lines))
            self.shown = {"loss": json.loads(lines[-1])["loss"]} if lines else {}

    def add(self, step: Step) -> None:
        self.waiting.append(step)
        if len(self.waiting) >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """Write what waits, synced once; NonFinite when a loss is."""
        rows = [_row(step) for step in self.waiting]
        self.waiting = []
        sound = list(itertools.takewhile(lambda row: math.isfinite(row["loss"]), rows))
        if sound:
            self.shown = {"loss": sound[-1]["loss"]}
            if self.path:
                fsops.append_line(self.path, "\n".join(json.dumps(row) for row in sound))
        if len(sound) < len(rows):
            bad = rows[len(sound)]
            raise NonFinite(
                f"the loss is {bad['loss']} at step {bad['step']}",
                why="the training has diverged",
                fix="run it again with a lower --learning-rate",
            )


def _row(step: Step) -> dict[str, Any]:
    """A line of the log; a norm that is infinite, as under fp16's loss scale, is null."""
    norm = float(step.gradient_norm)
    return {
        "step": step.number,
        "loss": float(step.loss),
        "gradient_norm": norm if math.isfinite(norm) else None,
        "learning_rate": step.learning_rate,
    }
