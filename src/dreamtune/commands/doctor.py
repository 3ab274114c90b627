"""dreamtune doctor: is everything here as it should be?"""

from __future__ import annotations

import dataclasses

import typer

from .. import console, flags


def register(app: typer.Typer) -> None:
    app.command("doctor")(run)


def run(json: flags.Json = False, store: flags.Store = None) -> None:
    """Look at libraries, devices, disk, caches and the store; the exit code tells of a fault."""
    from ..stages import doctor
    from ..store import Store

    findings = list(doctor.look(Store.open(store)))
    if json:
        console.json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = "!!" if finding.code else "  "
            console.out(f"{mark} {finding.about:<16} {console.clean(finding.said)}")
    raise typer.Exit(doctor.worst(findings))
