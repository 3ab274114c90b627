"""--tracker: losses as TensorBoard or W&B show them, through Accelerate. It cannot end a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dreamtune import console, fsops

Row = dict[str, Any]  # a line of the log


class Tracker:
    """Told of updates; what goes wrong in it is said once, and it is told no more.

    kind: "tensorboard" or "wandb"; None is told nothing. name: of the run.
    """

    def __init__(self, kind: str | None, folder: Path, name: str) -> None:
        self._kind, self._tracker = kind, None
        if kind:
            self._try(lambda: self._start(kind, folder, name))

    def _start(self, kind: str, folder: Path, name: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        fsops.make_folder(folder)
        place = {"dir": str(folder), "name": name} if kind == "wandb" else {"logging_dir": folder}
        project = "dreamtune" if kind == "wandb" else name
        tracker = LOGGER_TYPE_TO_CLASS[kind](project, **place)
        if hasattr(tracker, "start"):
            tracker.start()
        self._tracker = tracker
        console.say(f"{kind} shows this run: {folder}")

    def log(self, rows: Sequence[Row]) -> None:
        """Lines of the log, each an update."""
        if self._tracker:
            self._try(lambda: self._log(rows))

    def _log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values = {k: v for k, v in row.items() if k != "step" and v is not None}
            self._tracker.log(values, step=row["step"])  # type: ignore[attr-defined]

    def end(self) -> None:
        """What is written behind the run's back is written now."""
        if self._tracker:
            self._try(self._tracker.finish)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (Exception, SystemExit) as e:  # whatever it is, hours of training are worth more
            self._tracker = None
            why = (str(e).strip().splitlines() or [type(e).__name__])[0]
            console.warn(f"{self._kind} shows nothing: {why}")
