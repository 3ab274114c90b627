"""dreamtune train: learn a concept from a prep artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import console, flags, processes
from ..recipe import Chosen
from ..settings import Train


def register(app: typer.Typer) -> None:
    app.command("train", epilog=flags.MORE)(flags.command_signature(run, Train, method=True))


def run(
    train: Train,
    method: Chosen,
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME[@WEIGHT][@repeats=N][ as V02]",
            help="Prepared photos, of one concept or several. [the newest]",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapter. [the photos']")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last save.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop an interrupted run.")] = False,
    allow_drift: Annotated[
        bool, typer.Option("--allow-drift", help="Resume on another kind of machine.", hidden=True)
    ] = False,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="Updates between saves of the state; also every 10 minutes.")
    ] = 500,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also write a .safetensors file, for a user interface."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Overwrite --out.")] = False,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Train an adapter on prepared photos, and print its folder."""
    from ..names import check_name
    from ..stages import convert
    from ..stages import train as stage
    from ..store import Store

    home = Store.open(store)
    if out:
        convert.check_file(out, force)
    plan = stage.plan(home, train, method, photos or [])
    ask = stage.Run(
        home,
        plan.sets,
        plan.train,
        plan.method,
        check_name(plan.name if name is None else name),
        origin=plan.origin,
        resume=resume,
        fresh=fresh,
        allow_drift=allow_drift,
        checkpoint_every=checkpoint_every,
    )
    if dry_run:
        labels = ", ".join(one.prep.label for one in ask.sets)
        console.say(f"would train {ask.name} ({method.name}) on {labels}")
        size = train.batch * train.accumulation * processes.count()
        console.say(f"{ask.train.steps} updates of {size} pictures")
        return
    artifact = stage.run(ask)
    files = convert.deliver(home, artifact, out) if out and processes.first() else []
    said = " and ".join(f"{c.identifier} {c.class_word}" for c in ask.concepts)
    console.hint(f'dreamtune sample "{said}"')
    if json:
        run_facts = artifact.read_json("run.json")
        console.json(
            {
                "path": str(artifact.path),
                "id": artifact.id,
                "run": run_facts,
                **({"out": [str(file) for file in files]} if out else {}),
            }
        )
    else:
        console.out(artifact.path)
