"""dreamtune base: the models that training starts from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console, flags

if TYPE_CHECKING:
    from ..bases import Base
    from ..bases.facts import Facts

Name = Annotated[str, typer.Argument(help="A name of `base list`, a path, or a hub id.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="List, describe and name base models.", no_args_is_help=False)
    for command in (info, add, remove, fetch):
        group.command()(command)
    group.command("list")(list_)
    app.add_typer(group, name="base")


def list_(json: flags.Json = False) -> None:
    """List bases by name: built in, your own, well-known ones, and what the hub's cache holds."""
    from ..bases import listing

    found = listing.every()
    if json:
        console.json([facts.to_dict() for facts in found])
    elif not sys.stdout.isatty():
        for facts in found:
            console.out(facts.name)
    else:
        columns = ("name", "where", "family", "size", "licence", "")
        console.table("", columns, [_row(facts) for facts in found])


def info(name: Name, json: flags.Json = False) -> None:
    """Describe a base: where it is, size, licence, memory by method. Nothing is fetched."""
    from ..bases import listing

    facts = listing.one(name, _family)
    if json:
        console.json(facts.to_dict())
        return
    for label, value in _lines(facts):
        console.say(f"{label:11}{value}")
    if facts.path:
        console.out(facts.path)
    else:
        console.hint(f"dreamtune base fetch {name}")


def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    path: Annotated[Path, typer.Argument(help="A folder or a .safetensors file; stays there.")],
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Also when it means another base, or has changed.")
    ] = False,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
) -> None:
    """Give a base of your own a name for --base; its files are hashed, and changes noticed."""
    from .. import bases

    base = bases.at(path, name)
    _family(base)
    console.say(f"hashing {path}")
    bases.register(name, base, force, dry_run)
    if dry_run:
        console.say(f"would call it {name}")
        return
    console.hint(f"dreamtune train --base {name}")
    if json:
        console.json({"name": name, "path": str(base.path), "fingerprint": base.fingerprint()})
    else:
        console.out(name)


def remove(
    name: Annotated[str, typer.Argument(help="A name that you gave.")],
    dry_run: flags.DryRun = False,
) -> None:
    """Forget a name; the files stay where they are."""
    from ..bases import names
    from ..errors import NotFound, suggest

    if name not in names.named():
        fix = suggest(name, names.named()) or "see `dreamtune base list`"
        raise NotFound(f"you gave no base the name {name!r}", fix=fix)
    if dry_run:
        console.say(f"would forget {name}, which is {names.named()[name]['path']}")
    else:
        names.remove(name)


def fetch(name: Name, dry_run: flags.DryRun = False) -> None:
    """Download a base, or what is missing of it, and print its folder."""
    from .. import bases
    from ..bases import hub
    from ..errors import Usage

    remote = bases.remote(name)
    if dry_run and remote:
        needed = hub.plan(remote)
        console.say(f"would fetch {len(needed.absent)} files, {_gigabytes(needed.bytes)}")
        return
    base = bases.find(name)
    if isinstance(base, bases.Tiny):
        raise Usage(f"{name} has no files", why="its weights are random")
    console.out(base.path)


def _family(base: Base) -> str:
    """The family of a base; Usage when it has none."""
    from .. import devices, families

    devices.quiet_libraries()
    return str(families.of(base).name)


def _row(facts: Facts) -> tuple[Any, ...]:
    size = _gigabytes(facts.size) if facts.size else ""
    gate = "accept its licence first" if facts.gated and not facts.path else ""
    return facts.name, facts.where, facts.family or "", size, facts.licence or "", gate


def _lines(facts: Facts) -> list[tuple[str, str]]:
    """What `info` says, label and value."""
    from ..bases.facts import memory

    gate = "; must be accepted on the hub first" if facts.gated else ""
    counted = ", ".join(f"{role} {n / 1e6:,.0f} M" for role, n in facts.parameters.items())
    needs = ", ".join(f"{m} {_gigabytes(n)}" for m, n in memory(facts.parameters).items())
    lines = [
        ("name", facts.name),
        ("where", facts.where),
        ("family", facts.family),
        ("from", "@".join(filter(None, (facts.repo, facts.revision)))),
        ("licence", f"{facts.licence}{gate}" if facts.licence else ""),
        ("resolution", f"{facts.resolution} px" if facts.resolution else ""),
        ("size", _gigabytes(facts.size) if facts.size else ""),
        ("parameters", counted),
        ("memory", f"{needs}; and what pictures need, which train measures" if needs else ""),
        ("hash", facts.fingerprint),
    ]
    return [(label, value) for label, value in lines if value]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
