"""dreamtune train: learn a concept from a prep artifact."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import console, flags
from ..recipe import Chosen
from ..settings import Train


def register(app: typer.Typer) -> None:
    app.command("train")(flags.command_signature(run, Train, method=True))


def run(
    train: Train,
    method: Chosen,
    prep: Annotated[str | None, typer.Argument(help="Prepared photos. [the newest]")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapter. [the photos']")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last save.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop an interrupted run.")] = False,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Updates between saves of the state; also every 10 minutes.")
    ] = 500,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Train an adapter on prepared photos, and print its folder."""
    from ..artifacts import Store, check_name
    from ..stages import train as stage

    home = Store.open(store)
    photos = stage.find(home, prep)
    ask = stage.Run(
        home,
        photos,
        train,
        method,
        check_name(name or photos.name),
        resume,
        fresh,
        checkpoint_every,
    )
    if dry_run:
        console.say(f"would train {ask.name} ({method.name}) on {photos.label}")
        console.say(f"{train.steps} updates of {train.batch * train.accumulation} pictures")
        return
    artifact = stage.run(ask)
    console.hint(f'dreamtune sample "{ask.concept.identifier} {ask.concept.class_word}"')
    if json:
        run_facts = artifact.read_json("run.json")
        console.json({"path": str(artifact.path), "id": artifact.id, "run": run_facts})
    else:
        console.out(artifact.path)
