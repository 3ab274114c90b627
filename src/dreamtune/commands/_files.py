"""What the commands that write files for other programs have in common: flags and their end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..errors import Usage, suggest

if TYPE_CHECKING:
    from ..formats.lowrank import Cut

Out = Annotated[
    Path, typer.Option("--out", "-o", help="File that ends in .safetensors, or a folder.")
]
To = Annotated[
    str,
    typer.Option(
        metavar="kohya|diffusers|peft",
        help="Layout of an adapter: of all user interfaces, of load_lora_weights, or PEFT's.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="keep|fp32|fp16|bf16", help="Of the numbers; what does not fit is refused."
    ),
]
Base = Annotated[
    str | None,
    typer.Option(help="Base that the adapter is for: checked, and what a DoRA needs."),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what is there.")]
Rank = Annotated[int | None, typer.Option(min=1, help="Keep this rank at most.")]
Energy = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Keep this share of each module's squared norm: 0.99."),
]
PRECISIONS = ("keep", "fp32", "fp16", "bf16")
LAYOUTS = ("kohya", "diffusers", "peft")


def check(flag: str, value: str, known: Sequence[str]) -> None:
    """Usage when a flag's value is none of those that there are."""
    if value not in known:
        hint = suggest(value, known) or f"there is {', '.join(known)}"
        raise Usage(f"{flag} {value!r} is not known", fix=hint)


def cut(rank: int | None, energy: float | None) -> Cut | None:
    """How much of an adapter to keep; None when nothing was asked for."""
    from ..formats.lowrank import Cut

    return None if rank is None and energy is None else Cut(rank, energy)


def wrote(paths: Sequence[Path], json: bool, **facts: Any) -> None:
    """The files on stdout, one a line, or as JSON with what else is to be known."""
    if json:
        console.json({"paths": [str(path) for path in paths], **facts})
        return
    for path in paths:
        console.out(path)
