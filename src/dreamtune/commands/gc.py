"""dreamtune gc: free the space of what nobody needs."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from .. import console, flags


def register(app: typer.Typer) -> None:
    app.command("gc")(run)


def run(
    days: Annotated[
        float, typer.Option(min=0, help="How long cache and interrupted runs may lie unused.")
    ] = 30,
    cache: Annotated[
        float | None, typer.Option(min=0, metavar="GIB", help="Largest cache. [no limit]")
    ] = None,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Remove old cache entries and abandoned runs; artifacts are never touched."""
    from ..errors import Usage
    from ..stages import gc
    from ..store import Store

    if days != days or cache != cache:  # NaN is below no minimum
        raise Usage("--days and --cache are numbers")
    opened = Store.open(store)
    waste = gc.find(opened, days, cache)
    if not dry_run:
        waste = gc.collect(opened, waste)
    if json:
        console.json([{**dataclasses.asdict(one), "path": str(one.path)} for one in waste])
    else:
        for one in waste:
            console.out(one.path)
    total = sum(one.bytes for one in waste)
    verb = "would be" if dry_run else "are"
    console.say(f"{total / 2**20:,.1f} MiB in {len(waste)} places {verb} freed")
