"""dreamtune rm: delete artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console, flags


def register(app: typer.Typer) -> None:
    app.command("rm")(run)


def run(
    refs: Annotated[list[str], typer.Argument(help="Artifacts, or folders of damaged ones.")],
    kind: Annotated[str | None, typer.Option(help="Look only among this kind.")] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Also what others were made from, or has a tag.")
    ] = False,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Delete artifacts for good. Their version numbers are not used again."""
    from ..stages import removal
    from ..store import Store

    opened = Store.open(store)
    folders = [removal.folder(opened, ref, kind) for ref in refs]
    if not force:
        removal.check(opened, folders)
    for folder in folders:
        if not dry_run:
            opened.remove(folder)
        console.say(f"{'would remove' if dry_run else 'removed'} {Path(*folder.parts[-3:])}")
    if json:
        console.json([str(folder) for folder in folders])
    else:
        for folder in folders:
            console.out(folder)
