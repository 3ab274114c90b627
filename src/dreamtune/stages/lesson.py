"""What a run shows, update by update: photos of the subject, and what keeps their class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dreamtune.stages import classes
from dreamtune.stages.encode import Encoder, Lesson

if TYPE_CHECKING:
    from dreamtune.objective import Batch
    from dreamtune.stages.train import Run


class Lessons:
    """The encoded photos of a run; `batches` cuts them for this process."""

    def __init__(self, ask: Run, accelerator: Any, encoder: Encoder) -> None:
        self._train = ask.train
        self._rank, self._processes = accelerator.process_index, accelerator.num_processes
        lesson = _lesson(ask)
        self.photos = [sample.path.name for sample, *_ in lesson.subjects]
        self._noising = encoder.family.process
        size = ask.train.batch * ask.train.accumulation * self._processes
        self._encoded = encoder.encode(lesson, size)

    def showed(self, step: int) -> str:
        """The photos of an update in all processes, each with its timestep."""
        picks, size, times = self._encoded.order.picks(step - 1), self._train.batch, []
        for part, batch in enumerate(self._cut(step - 1, range(0, len(picks), size))):
            t = self._noising.timesteps(batch["u"], batch["mean"].shape[-2:])
            times += t.tolist()[: len(picks[part * size :][:size])]  # after them come the class's
        rows = zip(picks, times, strict=True)
        return ", ".join(f"{self.photos[pick.sample]} at timestep {t:.0f}" for pick, t in rows)

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of one update."""
        size = self._train.batch
        every = len(self._encoded.order.picks(step))
        return self._cut(step, range(self._rank * size, every, size * self._processes))

    def _cut(self, step: int, starts: Sequence[int]) -> list[Batch]:
        """The micro-batches that begin at these rows of an update."""
        from dreamtune.data.batches import CLASS, SUBJECT, TEACHER, Chance, make_batch

        table, prior, train = self._encoded.table, self._encoded.prior, self._train
        picks = self._encoded.order.picks(step)
        kept = prior.picks(step) if prior else []
        shares = {
            SUBJECT: train.subject_weight_at(step),
            CLASS: train.prior_weight,
            TEACHER: train.prior_weight,
        }
        shares = {role: share / len(picks) for role, share in shares.items()}
        size = train.batch
        some = [picks[a : a + size] + kept[a : a + size] for a in starts]
        chance = Chance(train.caption_dropout, train.noise_offset)
        return [make_batch(table, rows, train.seed, shares, chance) for rows in some]


def _lesson(ask: Run) -> Lesson:
    """The photos of all sets, and what keeps their classes as they were."""
    from dreamtune.data import dataset

    subjects = [
        (sample, one.repeats, classes.prompt_of(ask.train, one.class_word))
        for one in ask.sets
        for sample in one.samples()
    ]
    others = [sample for a in ask.classes for sample in dataset.read(a.path)]
    return Lesson(subjects, others, taught=ask.train.prior == "teacher")
