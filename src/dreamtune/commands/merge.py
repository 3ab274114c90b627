"""dreamtune merge: adapters into a model, or into one another."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console, flags
from ..errors import Usage
from . import _files


def register(app: typer.Typer) -> None:
    app.command("merge")(run)


def run(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER[@WEIGHT]...", help="Names, files or folders, as rex@0.8."),
    ],
    out: _files.Out,
    into: Annotated[
        str | None, typer.Option(metavar="BASE", help="Model to add them to. [one another]")
    ] = None,
    rank: _files.Rank = None,
    energy: _files.Energy = None,
    base: _files.Base = None,
    to: _files.To = "kohya",
    precision: _files.Precision = "keep",
    force: _files.Force = False,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Add adapters to a model (--into), or several adapters to one another.

    A model's weights are summed in fp32 and cast once; every other tensor stays as it is. Adapters
    together are exact, of the sum of their ranks, unless --rank or --energy cuts them. Words that
    adapters learned are written beside, since a model has no place for them.

    Exit codes: 2 it does not fit, 10 not found, 12 damaged, 13 a pickle, 14 NaN or too large for
    the precision, 15 disk full, 17 would overwrite.
    """
    from ..stages import convert, export, merge
    from ..store import Store

    home, cut = Store.open(store), _files.cut(rank, energy)
    _files.check("--to", to, _files.LAYOUTS)
    _files.check("--precision", precision, _files.PRECISIONS)
    if into:
        if cut or base:
            raise Usage("--rank, --energy and --base are for adapters without --into")
        convert.check_out(out, force)
        job = merge.IntoModel.plan(home, adapters, into)
        if dry_run:
            console.say(f"would add {job.label} to {job.model.name} and write {out}")
            return
        written = job.write(out, precision, force)
        counts = dict(written.counts)
        console.say(", ".join(f"{count} tensors {what}" for what, count in counts.items()))
        if job.trigger:
            console.hint(f'dreamtune sample "{job.trigger}" --base {out} --with none')
        _files.wrote(written.paths, json, tensors=counts, trigger=job.trigger)
        return
    source, ground, energy_kept = merge.adapters(home, adapters, cut, base)
    wish = export.Wish(out, to, precision, force=force)
    if dry_run:
        console.say(f"would write {', '.join(map(str, export.places(source, wish).values()))}")
        return
    paths = export.write(source, wish, ground)
    console.say(f"{energy_kept:.2%} of the squared norm is kept")
    _files.wrote(paths, json, layout=to, base=source.base, energy=energy_kept)
