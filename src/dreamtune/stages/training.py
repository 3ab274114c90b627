"""The work of a training run, phase by phase: load, encode, rehearse, step, save."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import console, devices, families, processes
from dreamtune.artifacts import Artifact
from dreamtune.stages import result
from dreamtune.stages.encode import Encoder
from dreamtune.stages.learner import Learner
from dreamtune.stages.lesson import Lessons
from dreamtune.stages.signals import signals
from dreamtune.stages.steps import Steps
from dreamtune.store import Draft

if TYPE_CHECKING:
    from dreamtune.stages.train import Run


class Training:
    """All phases in order. A process without a draft only computes."""

    def __init__(self, ask: Run, draft: Draft | None, checkpoint: Path | None) -> None:
        self.ask, self.draft, self.checkpoint = ask, draft, checkpoint
        self.seconds: dict[str, float] = {}

    def run(self) -> Artifact | None:
        """The finished artifact, where there is a draft for it."""
        with self._phase("import"):
            import_libraries()
        with self._phase("load"):
            self.learner = Learner(self.ask, self.checkpoint)
        with self._phase("encode"), processes.in_turn():
            self.lessons = self._encode()
        steps = Steps(self.ask, self.learner, self.lessons, self.draft.path if self.draft else None)
        with self._phase("rehearse"):
            self._rehearse(steps)
        with signals() as wishes:  # one that comes while the result is saved lets it finish
            with self._phase("steps"):
                loss = steps.run(self.checkpoint, wishes)
            if not self.draft:
                return None
            with self._phase("save"), steps.state_kept(self.ask.train.steps):
                steps.export(self.draft.path, self.ask.train.steps)
                result.describe(self.ask, self.learner, self.draft.path)
            run: dict[str, Any] = {"seconds": self.seconds, **self.learner.machine}
            run |= {"final_loss": loss, "trained_parameters": self.learner.count()}
            return self.draft.commit(run)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 3)

    def _encode(self) -> Lessons:
        """Photos and captions to what the loop reads; what is not needed after leaves memory."""
        ask, learner = self.ask, self.learner
        frozen_text = "text" not in learner.method.live()
        encoder = Encoder(
            ask.base,
            learner.family,
            ask.train,
            ask.store,
            learner.accelerator.device,
            learner.resolution,
            live_text=not frozen_text,
        )
        lessons = Lessons(ask, learner.accelerator, encoder)
        decodes = ask.train.loss == "perceptual"
        keep = bool(ask.train.preview_every)
        families.release(learner.family, frozen_text, vae=not decodes, keep=keep)
        return lessons

    def _rehearse(self, steps: Steps) -> None:
        """Try a step, and say what the run will take; Resources when it cannot fit."""
        from dreamtune.stages.forecast import Rehearsal, forecast

        learner, ask = self.learner, self.ask
        learner.objective.train()
        batch, context = self.lessons.batches(0)[0], learner.accelerator.autocast
        if ask.train.loss == "perceptual":  # all rows with little noise: the dearest batch
            batch["u"] = batch["u"].new_zeros(len(batch["u"]))
        rehearsal = Rehearsal(learner.objective, batch, context, learner.count())
        found = forecast(rehearsal, ask.train, ask.method.name, ask.store.path)
        if self.draft:
            steps.rehearse_saving(self.draft.path / f".rehearsal.tmp-{os.getpid()}")
        console.say(f"{ask.train.steps} updates will take {found}")


def import_libraries() -> None:
    """The slow imports, by themselves so that the run's times name them."""
    import accelerate
    import peft

    assert accelerate and peft
    devices.quiet_libraries()
