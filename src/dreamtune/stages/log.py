"""log.jsonl: what each update did."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import fsops
from dreamtune.errors import NonFinite

if TYPE_CHECKING:
    from dreamtune.loop import Step

Row = dict[str, Any]
FLUSH = 10  # updates that are written at once, since each time waits for the disk
LATE = 2  # updates after which a loss is looked at: by then a GPU has it, and is not waited for


class Log:
    """A line an update. Values stay on the device until some are due."""

    def __init__(
        self,
        path: Path | None,
        start: int,
        showed: Callable[[int], str] = lambda step: "?",
        tell: Callable[[Sequence[Row]], None] | None = None,
    ) -> None:
        """`start`: updates done; what an interrupted run logged after them is dropped.

        path: None in a process that only watches; showed: names the photos of an update; tell:
        whom else, of lines as they are written.
        """
        self.path, self.showed, self._tell = path, showed, tell
        self.waiting: list[Step] = []
        self.shown: dict[str, float] = {}
        if path is None:
            return
        with contextlib.suppress(FileNotFoundError):
            lines = path.read_bytes().splitlines()[:start]  # a power cut can leave any bytes behind
            fsops.write_bytes(path, b"".join(line + b"\n" for line in lines))
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            self.shown = {"loss": float(json.loads(path.read_bytes().splitlines()[-1])["loss"])}

    def add(self, step: Step) -> None:
        """NonFinite, and all before it written, when a loss of two updates ago is."""
        self.waiting.append(step)
        known = self.waiting[-1 - LATE : -LATE]
        if len(self.waiting) >= FLUSH or not all(math.isfinite(s.loss) for s in known):
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
            if self._tell:
                self._tell(sound)
        if len(sound) < len(rows):
            bad = rows[len(sound)]
            raise NonFinite(
                f"the loss is {bad['loss']} at step {bad['step']}",
                why=f"the training has diverged; the photos were {self.showed(bad['step'])}",
                fix="run it again with a lower --learning-rate",
            )


def _row(step: Step) -> Row:
    """A line of the log; a norm that is infinite, as under fp16's loss scale, is null."""
    norm = float(step.gradient_norm)
    return {
        "step": step.number,
        "loss": float(step.loss),
        "gradient_norm": norm if math.isfinite(norm) else None,
        "learning_rate": step.learning_rate,
    }
