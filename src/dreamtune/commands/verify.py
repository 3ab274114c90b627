"""dreamtune verify: is everything still as it was written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import console, flags


def register(app: typer.Typer) -> None:
    app.command("verify")(run)


def run(
    refs: Annotated[list[str] | None, typer.Argument(help="Artifacts; all, when none.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read and hash every byte.")] = False,
    json: flags.Json = False,
    store: flags.Store = None,
) -> None:
    """Check artifacts against their manifests; exit code 12 when anything differs."""
    from ..errors import Damaged, NotFound
    from ..store import Store

    opened = Store.open(store)
    if refs:
        chosen = [opened.resolve(ref) for ref in refs]
        report = {artifact.path: artifact.verify(deep) for artifact in chosen}
    elif not opened.path.is_dir():
        raise NotFound(f"no store at {opened.path}", fix="give --store, or set DREAMTUNE_STORE")
    else:
        report = opened.verify(deep)
    damaged = {path: problems for path, problems in report.items() if problems}
    for path, problems in damaged.items():
        for problem in problems:
            console.error(f"{path}: {problem}")
    if json:
        console.json(_document(report))
        raise typer.Exit(Damaged.code if damaged else 0)
    if damaged:
        raise Damaged(f"{len(damaged)} of {len(report)} artifacts are damaged")
    how = "every byte" if deep else "presence and sizes; --deep reads every byte"
    console.say(f"{len(report)} of {len(report)} artifacts are sound ({how})")


def _document(report: dict[Path, list[str]]) -> list[dict[str, Any]]:
    return [{"path": str(p), "sound": not found, "problems": found} for p, found in report.items()]
