"""The updates of a run: from its checkpoint to the end, with what is saved and shown on the way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dreamtune import checkpoints, console, fsops, processes, schedules
from dreamtune.errors import Interrupted, NonFinite, UserError
from dreamtune.stages import result
from dreamtune.stages.log import Log
from dreamtune.stages.preview import preview
from dreamtune.stages.signals import Heard, Wishes
from dreamtune.stages.tracker import Tracker

if TYPE_CHECKING:
    from dreamtune.stages.learner import Learner
    from dreamtune.stages.lesson import Lessons
    from dreamtune.stages.train import Run

CHECKPOINT_SECONDS = 600.0


class Steps:
    """folder: of the draft; None in a process that only computes."""

    def __init__(self, ask: Run, learner: Learner, lessons: Lessons, folder: Path | None) -> None:
        self.ask, self.train = ask, ask.train
        self.learner, self.lessons, self.folder = learner, lessons, folder
        name = f"{ask.name}-{ask.key[:8]}"
        self.tracker = Tracker(
            ask.train.tracker if folder else None, Path(ask.train.tracker_dir), name
        )

    def run(self, checkpoint: Path | None, wishes: Wishes) -> float | None:
        """Updates to the end; saves on the way and on a signal. The last loss."""
        from dreamtune import loop

        train, learner = self.train, self.learner
        start = self._restore(checkpoint) if checkpoint else 0
        path = self.folder / "log.jsonl" if self.folder else None
        log = Log(path, start, self.lessons.showed, self.tracker.log)
        heard = Heard(wishes, learner.accelerator)
        learner.objective.train()
        steps = loop.train(
            learner.objective,
            learner.optimizer,
            self.lessons.batches,
            accelerator=learner.accelerator,
            rate=self._rate,
            steps=range(start, train.steps),
            seed=train.seed,
            clip=train.clip,
        )
        saved = time.monotonic()
        with console.progress(train.steps, "training", start) as bar:
            for step in steps:
                n, now = step.number, time.monotonic()
                if learner.average:
                    learner.average.update(n)
                with self.state_kept(n):
                    log.add(step)
                    bar.advance(1, **log.shown)
                    self._once_in_a_while(n)
                wished = heard.now()
                due = n % self.ask.checkpoint_every == 0 or now - saved > CHECKPOINT_SECONDS
                if n < train.steps and (due or wished):
                    wishes.save = False
                    log.flush()
                    self.checkpoint(n)
                    saved = now
                    if wished.end:
                        raise self._interrupted(wished.end, n)
        log.flush()
        self.tracker.end()
        return log.shown.get("loss")

    def _restore(self, checkpoint: Path) -> int:
        """Put the state back; the number of updates behind it."""
        learner, start = self.learner, checkpoints.step_of(checkpoint)
        checkpoints.restore(checkpoint, learner.parameters, learner.optimizer, **learner.beside())
        console.say(f"going on after step {start} of {self.train.steps}")
        return start

    def _interrupted(self, number: int, step: int) -> Interrupted:
        self.tracker.end()
        processes.wait()  # for the first, which saves
        return Interrupted(
            number,
            f"interrupted, step {step} of {self.train.steps} is saved",
            fix="run the same command with --resume to go on",
        )

    @property
    def _schedule(self) -> str:
        return self.train.schedule or ("constant" if self.learner.averages else "cosine")

    def _rate(self, step: int) -> float:
        train = self.train
        return schedules.factor(self._schedule, step, train.steps, train.warmup, train.cycles)

    def _once_in_a_while(self, step: int) -> None:
        """Previews, and adapters to try."""
        train, folder = self.train, self.folder
        if not folder:
            return
        if train.preview_every and step % train.preview_every == 0:
            self._preview(step, folder / "previews")
        if train.save_every and step % train.save_every == 0 and step < train.steps:
            self.export(folder / "steps" / f"{step:06d}", step)

    def _preview(self, step: int, folder: Path) -> None:
        learner, concept = self.learner, self.learner.concepts[0]
        with learner.exported():
            size, seed = learner.resolution, self.train.seed
            preview(learner.family, concept, folder, step, size, seed)

    @contextlib.contextmanager
    def state_kept(self, step: int) -> Iterator[None]:
        """When something else cannot be written, the state is, so that no update is lost."""
        try:
            yield
        except (Interrupted, NonFinite):  # it is saved already, or should not be
            raise
        except Exception:
            with contextlib.suppress(UserError, OSError):
                self.checkpoint(step)
                console.warn(f"step {step} is saved, and --resume goes on from there")
            raise

    def rehearse_saving(self, scratch: Path) -> None:
        """Save all that will be saved once, so that what cannot be is known before step 1."""
        try:
            self.export(scratch, 0)
            self.checkpoint(0, scratch)
            if self.train.preview_every:
                self._preview(0, scratch)
        finally:
            fsops.discard(scratch)

    def checkpoint(self, step: int, folder: Path | None = None) -> None:
        """Save the state after `step` updates."""
        if self.folder:
            learner, folder = self.learner, folder or self.folder / "checkpoints"
            state = learner.parameters, learner.optimizer, learner.machine
            checkpoints.save(folder, step, *state, **learner.beside())

    def export(self, folder: Path, step: int) -> None:
        """Write the adapter as it is after `step` updates."""
        train = self.train
        training = {
            "seed": train.seed,
            "learning_rate": self.learner.peak(),
            "max_train_steps": train.steps,
            "num_train_images": len(self.lessons.photos),
            "lr_scheduler": self._schedule,
            "optimizer": train.optimizer,
        }
        result.weights(self.learner, folder, step, training)
