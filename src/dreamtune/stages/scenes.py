"""What `sample` is to make: every picture with its own settings, adapters and words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dreamtune.errors import Usage
from dreamtune.formats import prompts, samplers
from dreamtune.settings import Sample
from dreamtune.stages.adapters import Adapter
from dreamtune.stages.axes import Axis
from dreamtune.stages.lines import Line, settle

COUNT = 4  # pictures of a prompt


@dataclass(frozen=True)
class Scene:
    """One picture to make.

    line, seed, at: its place: the prompt's number, and column and row of a grid
    adapters:       each with the weight that it is put in with
    words:          prompts and their shares (formats.prompts.variants)
    """

    line: int
    seed: int
    at: tuple[int, int]
    prompt: str
    sample: Sample
    adapters: tuple[Adapter, ...]
    words: tuple[tuple[str, float], ...]
    in_grid: bool

    @property
    def file(self) -> str:
        column, row = self.at
        place = f"-{row}-{column}" if self.in_grid else ""
        return f"{self.line:03d}-{self.seed}{place}.png"

    @property
    def dress(self) -> tuple[object, ...]:
        """Equal for pictures that need the same adapters in the base."""
        return tuple((a.id, a.alias, a.step, a.weight) for a in self.adapters)


def plan(
    lines: Sequence[Line], adapters: Sequence[Sequence[Adapter]], across: Axis, down: Axis
) -> list[Scene]:
    """Every picture, in order: by line, seed, row and column. Usage for what cannot be said."""
    return [
        scene
        for i, (line, own) in enumerate(zip(lines, adapters, strict=True))
        for scene in _of_line(i, line, own, across, down)
    ]


def _of_line(
    number: int, line: Line, adapters: Sequence[Adapter], across: Axis, down: Axis
) -> Iterator[Scene]:
    in_grid = bool(across.name or down.name)
    count = line.sample.count or (1 if in_grid else COUNT)
    cells = [*itertools.product(enumerate(down.values), enumerate(across.values))]
    for offset, ((row, high), (column, wide)) in itertools.product(range(count), cells):
        sample = settle(line.sample, {**across.at(wide), **down.at(high)})
        if sample.scheduler:
            samplers.parse(sample.scheduler)
        dressed, words = _dress(line.prompt, adapters, sample.weight)
        yield Scene(
            line=number,
            seed=sample.seed + offset,
            at=(column, row),
            prompt=line.prompt,
            sample=sample,
            adapters=dressed,
            words=words,
            in_grid=in_grid,
        )


def _dress(
    typed: str, adapters: Sequence[Adapter], weight: float
) -> tuple[tuple[Adapter, ...], tuple[tuple[str, float], ...]]:
    """Adapters at their weights, and the prompt with and without what shows in part.

    A LoRA is scaled by the strongest of its concepts in the prompt. An adapter that is only a word
    has nothing to scale: its weight is the strength of its concepts.
    """
    plain = {c.identifier: c.class_word for a in adapters for c in a.concepts}
    prompt, marks = prompts.strengths(typed, plain.keys())
    dressed: list[Adapter] = []
    for adapter in adapters:
        said = {i: marks.get(i, 1.0) for i in adapter.identifiers if i in prompt}
        total = adapter.weight * weight
        if adapter.is_word:
            marks |= {i: strength * total for i, strength in said.items()}
            total = 1.0
        else:
            total *= max(said.values(), default=1.0)
        dressed.append(adapter.weighted(total))
    return tuple(dressed), tuple(prompts.variants(prompt, marks, plain))


def check_negatives(scenes: Sequence[Scene]) -> None:
    """Usage for a strength in a negative prompt, where there is nothing to show."""
    for scene in scenes:
        names: Mapping[str, None] = dict.fromkeys(n for a in scene.adapters for n in a.identifiers)
        if prompts.strengths(scene.sample.negative, names.keys())[1]:
            raise Usage(
                f"the negative prompt {scene.sample.negative!r} has a strength",
                fix="strengths belong into the prompt",
            )
