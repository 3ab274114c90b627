"""Bases as `dreamtune base` shows them. Nothing is fetched, and no weights are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamtune import bases
from dreamtune.bases import Base, Tiny, catalogue, facts, hub, names
from dreamtune.bases.facts import Facts
from dreamtune.bases.hub import Remote
from dreamtune.errors import Network, UserError

LICENCES = {"mini": "Apache-2.0; its artwork as NOTICE says"}


def every() -> list[Facts]:
    """Built in, the user's, well-known, and what else the hub's cache holds."""
    found = [Facts(name, "built in", path=bases.ASSETS / name) for name in bases.BUNDLED]
    for name, entry in names.named().items():
        path = Path(entry["path"])
        found.append(Facts(name, "yours" if path.exists() else "gone", path=path))
    found += [_known(name) for name in catalogue.KNOWN]
    repos = {known.repo for known in catalogue.KNOWN.values()}
    return found + [_cached(repo) for repo in hub.in_cache() if repo not in repos]


def one(name: str, family_of: Callable[[Base], str]) -> Facts:
    """All that is known of one base, which need not be here. NotFound, Network, Damaged, …"""
    if name in catalogue.KNOWN and (said := _known(name)).path is None:
        return said
    remote = bases.remote(name)
    if remote and not hub.whole(remote, name):
        return _asked(remote)
    base = bases.find(name)
    if isinstance(base, Tiny):
        return Facts(name, "random weights", base.family)
    where = "built in" if name in bases.BUNDLED else "yours" if name in names.named() else "here"
    found = facts.of_base(base, where, family_of(base))
    return dataclasses.replace(found, licence=found.licence or LICENCES.get(name))


def _known(name: str) -> Facts:
    known = catalogue.KNOWN[name]
    said = facts.of_known(name, known, None)
    try:
        base = hub.whole(Remote(known.repo, known.revision, known.formerly), name)
    except UserError as e:
        return dataclasses.replace(said, where=f"refused: {e.what}")
    return dataclasses.replace(said, where="here", path=base.path) if base else said


def _cached(repo: str) -> Facts:
    try:
        base = hub.whole(Remote(repo), repo)
    except UserError as e:
        return Facts(repo, f"refused: {e.what}", repo=repo)
    return Facts(repo, "here" if base else "not whole", repo=repo, path=base.path if base else None)


def _asked(remote: Remote) -> Facts:
    """What the hub says of a repository that is not here."""
    repo = remote.repo
    try:
        said = hub.info(remote)
    except Network as e:
        raise Network(f"{repo} is not here and cannot be asked for", why=e.why, fix=e.fix) from None
    card: Any = said.card_data or {}
    return Facts(
        repo,
        "not here",
        repo=repo,
        revision=said.sha,
        licence=card.get("license"),
        gated=bool(said.gated),
    )
