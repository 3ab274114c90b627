"""dreamtune recipe: print and check settings."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console, flags


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Print and check recipes.", no_args_is_help=False)
    group.command("dump")(dump)
    group.command("validate")(validate)
    app.add_typer(group, name="recipe")


def dump(
    source: Annotated[
        str | None, typer.Argument(help="A recipe file or name, or an artifact; else defaults.")
    ] = None,
    store: flags.Store = None,
) -> None:
    """Print a complete recipe as TOML: of an artifact, or with every default written out."""
    from .. import recipe
    from ..errors import NotFound
    from ..store import Store

    try:
        text = recipe.describe(recipe.validate(recipe.find(source) if source else None))
    except NotFound:
        text = recipe.dumps(Store.open(store).resolve(str(source)).recipe)
    console.out(text.rstrip())


def validate(
    file: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled one.")],
) -> None:
    """Check a recipe without running it; every problem is told at once."""
    from .. import recipe

    recipe.validate(file)
    console.say(f"{file} is a valid recipe")
