"""A setting and the values that it takes across a grid: "guidance=3,5,7"."""

from __future__ import annotations

from dataclasses import dataclass

from dreamtune.errors import Usage
from dreamtune.settings import Sample
from dreamtune.stages import lines


@dataclass(frozen=True)
class Axis:
    """The settings of each column or row: as typed, and what they say."""

    name: str = ""
    values: tuple[str, ...] = ("",)

    @classmethod
    def read(cls, text: str | None, sample: Sample) -> Axis:
        """None is an axis of one, on which nothing changes; Usage for values that cannot be."""
        if text is None:
            return cls()
        name, equals, listed = text.partition("=")
        values = tuple(value.strip() for value in listed.split(",") if value.strip())
        if not equals or not values:
            raise Usage(f"cannot read the grid's {text!r}", fix="write guidance=3,5,7")
        axis = cls(lines.field_of(name.strip()), values)
        if axis.name == "count":
            raise Usage("a grid has one picture in each place", fix="use seed=1,2,3")
        for value in values:
            lines.settle(sample, axis.at(value))
        return axis

    def at(self, value: str) -> dict[str, str]:
        """The setting at one value, as typed."""
        return {self.name: value} if self.name else {}

    @property
    def labels(self) -> list[str]:
        return [f"{self.name} {value}" for value in self.values] if self.name else []
