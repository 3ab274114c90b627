"""What dreamtune keeps for a user outside any store: two small JSON files under the XDG folders.

Losing them costs time (hashes.json) or a word to type (bases.json), never a result.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dreamtune import fsops
from dreamtune.errors import Resources


def cache_file(name: str) -> Path:
    """A file that can be thrown away: $XDG_CACHE_HOME/dreamtune/NAME."""
    return _home("XDG_CACHE_HOME", ".cache") / name


def data_file(name: str) -> Path:
    """A file that the user made: $XDG_DATA_HOME/dreamtune/NAME."""
    return _home("XDG_DATA_HOME", ".local/share") / name


def read(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty when there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, value: dict[str, Any]) -> None:
    """Replace `path`, whole or not at all. Resources when the disk refuses."""
    try:
        fsops.make_folder(path.parent)
        fsops.write_json(path, value)
    except OSError as e:
        raise Resources(f"cannot write {path}", why=e.strerror or str(e)) from None


def _home(variable: str, default: str) -> Path:
    """The XDG base directory specification: an empty or relative value does not count."""
    set_to = Path(os.environ.get(variable, ""))
    return (set_to if set_to.is_absolute() else Path.home() / default) / "dreamtune"
