"""What a stage can be told: one frozen dataclass a stage, read by `recipe` and `flags`.

Every field is an `option`. Its name is the recipe key, its type is checked, its default is what
happens when nobody says anything; None means "decided at run time". Types: int, float, str, bool,
tuple[int | float | str, ...], each also `| None`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def option(
    default: Any,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    multiple: int | None = None,
    choices: Sequence[Any] | None = None,
    flag: str | None = "",
    short: str = "",
    alias: Sequence[str] = (),
) -> Any:
    """A dataclass field that a recipe can set and, unless `flag=None`, a flag too.

    low, high:    inclusive range of a number (of every item, for a tuple)
    above, below: exclusive range, for a learning rate or a dropout
    multiple:     the number must be a multiple of this
    flag:         "" is the field's name with dashes; None leaves it to recipes and --set
    alias:        other names of the flag, accepted but not shown
    """
    rules: dict[str, Any] = {"low": low, "high": high, "above": above, "below": below}
    rules |= {"multiple": multiple, "choices": choices}
    metadata = {k: v for k, v in rules.items() if v is not None}
    metadata |= {"help": help, "flag": flag, "short": short, "alias": tuple(alias)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Prep:
    """The [prep] table: from a folder of photos to a prep artifact."""


@dataclass(frozen=True)
class Train:
    """The [train] table: what every method has in common."""


@dataclass(frozen=True)
class Sample:
    """The [sample] table: from an adapter and prompts to pictures."""
