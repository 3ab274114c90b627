"""dreamtune prep: from a folder of photos to what training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console, flags
from ..settings import Prep

Folder = Annotated[Path, typer.Argument(help="Your photos, or a kohya dataset TOML. Only read.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the artifact. [the folder's]")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit 3 when a photo is set aside.")]


def register(app: typer.Typer) -> None:
    app.command("prep")(flags.command_signature(run, Prep))


def run(
    prep: Prep,
    folder: Folder,
    name: Name = None,
    strict: Strict = False,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Choose, clean and caption photos; what does not fit is set aside with a reason.

    dreamtune prep ./photos --class dog
    """
    from ..errors import SetAside
    from ..stages import prep as stage
    from ..store import Store

    artifact, outcome = stage.run(folder, prep, Store.open(store), name, dry_run)
    if json:
        place = {"path": str(artifact.path), "id": artifact.id} if artifact else {}
        console.json({**place, "dry_run": dry_run, **outcome.to_dict()})
    elif artifact and not dry_run:
        console.out(artifact.path)
    if artifact and not dry_run:
        console.hint(f"look at {artifact.path / 'contact.png'}, then: dreamtune train")
    if strict and outcome.rejected:
        # The result is already on stdout, so that a second document there would spoil it.
        console.error(f"{len(outcome.rejected)} photos were set aside, and --strict was given")
        raise typer.Exit(SetAside.code)
