"""dreamtune extract: the difference of two models as a LoRA."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console, flags
from . import _files


def register(app: typer.Typer) -> None:
    app.command("extract")(run)


def run(
    tuned: Annotated[
        str,
        typer.Argument(help="A trained model: DreamBooth run, folder or .safetensors file."),
    ],
    out: _files.Out,
    base: Annotated[
        str | None, typer.Option(help="Model that it was trained from. [the run's own]")
    ] = None,
    rank: _files.Rank = None,
    energy: _files.Energy = None,
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Of the text encoders too.")
    ] = True,
    to: _files.To = "kohya",
    precision: _files.Precision = "keep",
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where it runs.")] = "auto",
    force: _files.Force = False,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Make a LoRA of what two models differ by, by singular values. Rank 32 when none is given.

    Exit codes: 2 they are not alike or do not differ, 10 not found, 12 damaged, 13 a pickle, 14 NaN
    or too large for the precision, 15 disk full, 17 would overwrite.
    """
    from .. import devices
    from ..formats.lowrank import Cut
    from ..stages import export, extract
    from ..store import Store

    _files.check("--to", to, _files.LAYOUTS)
    _files.check("--precision", precision, _files.PRECISIONS)
    _files.check("--device", device, ("auto", "cpu", "cuda"))
    pair = extract.plan(Store.open(store), tuned, base, text)
    wish = export.Wish(out, to, precision, force=force)
    places = export.places(pair.empty(), wish)
    if dry_run:
        console.say(f"would write {', '.join(map(str, places.values()))}")
        return
    cut = _files.cut(rank, energy) or Cut(32)
    found = pair.run(cut, devices.choose(device))
    paths = export.write(found.source, wish, pair.ground)
    console.say(f"{found.energy:.2%} of the squared norm of the differences is kept")
    _files.wrote(paths, json, layout=to, energy=found.energy, left_out=found.left_out)
