"""dreamtune show: what one artifact is made of."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console, flags


def register(app: typer.Typer) -> None:
    app.command("show")(run)


def run(
    ref: Annotated[str, typer.Argument(help="A path, name, name@v003, or the start of an id.")],
    kind: Annotated[str | None, typer.Option(help="Look only among this kind.")] = None,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Show an artifact: where it came from, its settings and its files."""
    from .. import recipe
    from ..artifacts import MANIFEST
    from ..store import Store

    artifact = Store.open(store).resolve(ref, kind)
    if json:
        console.json({"path": str(artifact.path), **artifact.read_json(MANIFEST)})
        return
    console.say(f"{artifact.kind} {artifact.label}")
    console.say(f"id   {artifact.id}\nkey  {artifact.key}")
    console.say("".join(f"from {parent}\n" for parent in artifact.parents))
    console.say(recipe.dumps(artifact.recipe))
    files = {**artifact.files, **artifact.run}
    rows = [(name, f"{entry['size']:,}", entry["sha256"][:12]) for name, entry in files.items()]
    console.table("", ("file", "bytes", "sha256"), rows)
    console.out(artifact.path)
