"""dreamtune log: where something came from."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console, flags


def register(app: typer.Typer) -> None:
    app.command("log")(run)


def run(
    ref: Annotated[
        str, typer.Argument(help="An artifact, or a file that came from one, such as a picture.")
    ],
    kind: Annotated[str | None, typer.Option(help="Look only among this kind.")] = None,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Show what an artifact was made from, down to the hashes of the photos."""
    from ..stages import lineage
    from ..store import Store

    node = lineage.trace(Store.open(store), ref, kind)
    if json:
        console.json(node)
    else:
        for line in lineage.lines(node):
            console.out(console.clean(line))
