"""dreamtune list: what the store holds."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import console, flags


def register(app: typer.Typer) -> None:
    app.command("list")(run)


def run(
    kind: Annotated[str | None, typer.Argument(help="Only this kind, such as adapter.")] = None,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """List artifacts: a table on a terminal, one path a line in a pipe."""
    from ..store import Store

    opened = Store.open(store)
    report = opened.verify()
    found = opened.list(kind)
    for artifact in found:
        if problems := report[artifact.path]:
            console.warn(f"{artifact.path}: {problems[0]}")
    if json:
        fields = ("kind", "name", "version", "id", "key", "parents")
        console.json(
            [
                {f: getattr(a, f) for f in fields}
                | {"path": str(a.path), "sound": not report[a.path]}
                for a in found
            ]
        )
    elif not sys.stdout.isatty():
        for artifact in found:
            console.out(artifact.path)
    elif found:
        rows = [(a.kind, a.label, a.id[:12], a.path) for a in found]
        console.table("", ("kind", "name", "id", "path"), rows)
    else:
        console.say(f"nothing in {opened.path} yet")
        console.hint("dreamtune prep FOLDER")
