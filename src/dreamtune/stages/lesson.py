"""What a run shows, update by update: photos of the subject, and what keeps their class."""

from __future__ import annotations

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
        size = ask.train.batch * ask.train.accumulation * self._processes
        self._encoded = encoder.encode(lesson, size)

    def showed(self, step: int) -> str:
        """The photos of an update."""
        picks = self._encoded.order.picks(step - 1)
        return ", ".join(dict.fromkeys(self.photos[pick.sample] for pick in picks))

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of one update."""
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
        starts = range(self._rank * size, len(picks), size * self._processes)
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
