"""Short names for a user's own bases, and where bases that were used lie.

    bases.json   {"named": {name: {path, sha256}}, "used": {sha256: {name, path, sha256}}}

An adapter records a base's name and hash, never its path: what leaves this machine must not say
where things live on it. `used` is how `sample` finds such a base again.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from dreamtune import fsops
from dreamtune.bases import user
from dreamtune.errors import Resources, Usage

FILE = "bases.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def named() -> dict[str, dict[str, str]]:
    """The user's names: {"path": …, "sha256": fingerprint} each."""
    return _table("named")


def add(name: str, path: Path, sha256: str) -> None:
    """Give a base a name. Usage for one that cannot be, Resources when it cannot be kept."""
    if not NAME.fullmatch(name):
        why = "a name is letters, digits and . _ -, and begins with a letter or digit"
        raise Usage(f"{name!r:.80} cannot name a base", why=why)
    _write("named", name, {"path": str(path.resolve()), "sha256": sha256})


def remember(name: str, path: Path, sha256: str) -> None:
    """Note where a base lies that an adapter is trained on; where that fails, --base is needed."""
    with contextlib.suppress(OSError, Resources):
        _write("used", sha256, {"name": name, "path": str(path.resolve()), "sha256": sha256})


def used(sha256: str) -> list[Path]:
    """Where a base with this fingerprint was last seen."""
    entries = [*_table("used").values(), *named().values()]
    return [Path(e["path"]) for e in entries if e.get("sha256") == sha256]


def used_as(name: str) -> Path | None:
    """Where the base lies that an adapter's recipe calls `name`."""
    found = [e for e in _table("used").values() if e.get("name") == name]
    return Path(found[-1]["path"]) if found else None


def _table(name: str) -> dict[str, dict[str, str]]:
    found = user.read(user.data_file(FILE)).get(name)
    entries = found.items() if isinstance(found, dict) else ()
    return {k: v for k, v in entries if isinstance(v, dict) and isinstance(v.get("path"), str)}


def _write(table: str, key: str, entry: dict[str, Any]) -> None:
    file = user.data_file(FILE)
    fsops.make_folder(file.parent)
    with fsops.lock(file.with_suffix(".lock"), FILE, wait=True):
        user.write(file, {**user.read(file), table: _table(table) | {key: entry}})
