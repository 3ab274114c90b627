"""dreamtune prep: from a folder of photos to what training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console, flags
from ..settings import Prep

Folder = Annotated[Path, typer.Argument(help="Folder with your photos; it is only read.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the artifact [the folder's].")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit 3 when a photo is set aside.")]


def register(app: typer.Typer) -> None:
    app.command("prep")(flags.command_signature(run, Prep))


def run(
    prep: Prep,
    folder: Folder,
    name: Name = None,
    strict: Strict = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Choose, clean and caption photos; what does not fit is set aside with a reason.

    dreamtune prep ./photos --class dog
    """
    from ..artifacts import Store
    from ..stages import prep as stage

    artifact = stage.run(folder, prep, Store.open(store), name)
    console.out(artifact.path)
