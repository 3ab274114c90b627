"""dreamtune tag: words for versions."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console, flags


def register(app: typer.Typer) -> None:
    app.command("tag")(run)


def run(
    ref: Annotated[str | None, typer.Argument(help="An artifact.")] = None,
    word: Annotated[str | None, typer.Argument(help="The word that will mean it.")] = None,
    kind: Annotated[str | None, typer.Option(help="Look only among this kind.")] = None,
    delete: Annotated[str | None, typer.Option(metavar="WORD", help="Forget this tag.")] = None,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Give a version a name of its own, such as best; without arguments, list the tags.

    A tag stands wherever an artifact can be named. Using it again moves it.
    """
    from ..errors import Usage
    from ..store import Store

    opened = Store.open(store)
    if delete is not None and ref is None:
        opened.untag(delete)
    elif ref is not None and word is not None and delete is None:
        opened.tag(opened.resolve(ref, kind), word)
    elif ref is not None or delete is not None:
        raise Usage("tag takes an artifact and a word", fix="dreamtune tag rex@v002 best")
    tags = {word: "/".join(place) for word, place in sorted(opened.tags().items())}
    if json:
        console.json(tags)
    elif ref is None and delete is None:
        for name, place in tags.items():
            console.out(f"{name}\t{place}")
