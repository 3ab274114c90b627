"""dreamtune resize: an adapter of a smaller rank."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console, flags
from ..errors import Usage
from . import _files


def register(app: typer.Typer) -> None:
    app.command("resize")(run)


def run(
    adapter: Annotated[str, typer.Argument(help="A name, a .safetensors file or a PEFT folder.")],
    out: _files.Out,
    rank: _files.Rank = None,
    energy: _files.Energy = None,
    to: _files.To = "kohya",
    precision: _files.Precision = "keep",
    base: _files.Base = None,
    force: _files.Force = False,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Make an adapter smaller by its singular values: to a rank, or to what an energy needs.

    Exit codes: 2 it does not fit, 10 not found, 12 damaged, 13 a pickle, 14 NaN or too large for
    the precision, 15 disk full, 17 would overwrite.
    """
    from dataclasses import replace

    from ..stages import convert, export, merge
    from ..store import Store

    cut = _files.cut(rank, energy)
    if cut is None:
        raise Usage("how small?", fix="give --rank N, --energy 0.99 or both")
    _files.check("--to", to, _files.LAYOUTS)
    _files.check("--precision", precision, _files.PRECISIONS)
    source, ground = convert.adapter_of(Store.open(store), adapter, base)
    wish = export.Wish(out, to, precision, force=force)
    places = export.places(source, wish)
    if dry_run:
        console.say(f"would write {', '.join(map(str, places.values()))}")
        return
    smaller, kept = merge.resize(source, cut)
    paths = export.write(replace(source, adapter=smaller), wish, ground)
    console.say(f"{kept:.2%} of the squared norm is kept")
    _files.wrote(paths, json, layout=to, base=source.base, energy=kept)
