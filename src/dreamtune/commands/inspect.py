"""dreamtune inspect: what a file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, flags

if TYPE_CHECKING:
    from ..stages.inspect import Report


def register(app: typer.Typer) -> None:
    app.command("inspect")(run)


def run(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help=".safetensors files or PEFT folders.")
    ],
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every value too: hashes, norms, NaN.")
    ] = False,
    json: flags.Json = False,
) -> None:
    """Say what files are: what for, rank, alpha, trigger, base, hashes. Only headers are read.

    Exit codes: 10 no such file, 12 damaged or not as it was saved, 13 a pickle, 14 NaN or infinity.
    """
    from ..stages import inspect as stage

    reports = [stage.run(path, deep) for path in paths]
    if json:
        console.json([_document(report) for report in reports])
    for report in reports:
        if not json:
            _show(report)
        for warning in report.warnings:
            console.warn(f"{report.path}: {warning}")
    problems = [report.problem for report in reports if report.problem]
    for problem in problems:
        console.error(str(problem))
    raise typer.Exit(problems[0].code if problems else 0)


def _document(report: Report) -> dict[str, Any]:
    wrong = str(report.problem) if report.problem else None
    said = {"warnings": report.warnings, "problem": wrong}
    return {"path": str(report.path), **report.facts, **said}


def _show(report: Report) -> None:
    """A line a fact, on stdout: that is what was asked for."""
    console.out(report.path)
    width = max(map(len, report.facts), default=0)
    for name, value in report.facts.items():
        if value is not None and name != "base":
            console.out(f"  {name:<{width}}  {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " x ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
