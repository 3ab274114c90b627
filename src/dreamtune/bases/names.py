"""Short names for a user's own bases, and where bases that were used lie.

    bases.json   {"named": {name: {path, sha256}}, "used": {sha256: {name, path, sha256}}}

An adapter records a base's name and hash, never its path: what leaves this machine must not say
where things live on it. `used` is how `sample` finds such a base again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from dreamtune.bases import user
from dreamtune.errors import Resources, Usage

FILE = "bases.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def named() -> dict[str, dict[str, str]]:
    """The user's names: {"path": …, "sha256": fingerprint} each."""
    return _table("named")


def check(name: str, taken: Container[str]) -> None:
    """Usage for a name that cannot be one, or that means something already."""
    if not NAME.fullmatch(name):
        why = "a name is letters, digits and . _ -, and begins with a letter or digit"
        raise Usage(f"{name!r:.80} cannot name a base", why=why)
    if name in taken:
        raise Usage(f"{name!r} is a base already", fix="choose another name")


def add(name: str, path: Path, sha256: str) -> None:
    """Give a base a name. Resources when it cannot be kept."""
    _write("named", _table("named") | {name: {"path": str(path.resolve()), "sha256": sha256}})


def remove(name: str) -> None:
    """Forget a name; the base itself is not touched."""
    _write("named", {k: v for k, v in _table("named").items() if k != name})


def remember(name: str, path: Path, sha256: str) -> None:
    """Note where a base lies that an adapter is trained on; where that fails, --base is needed."""
    with contextlib.suppress(Resources):
        entry = {"name": name, "path": str(path.resolve()), "sha256": sha256}
        _write("used", _table("used") | {sha256: entry})


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


def _write(table: str, entries: dict[str, Any]) -> None:
    file = user.data_file(FILE)
    try:
        user.write(file, {**user.read(file), table: entries})
    except Resources as e:
        raise Resources(e.what, why=e.why, fix="set XDG_DATA_HOME to a folder of yours") from None
