"""A name is a file: what a package offers is the list of its modules.

No registry and no decorator. Adding a family, a method or a command is adding one file.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from .errors import Usage, suggest


def names(package: str) -> list[str]:
    """Public module names of `package` ("dreamtune.families"), sorted; none of them is imported."""
    path = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import one module of `package` by name; Usage with the near miss when there is none."""
    known = names(package)
    if name not in known:
        kind = {"families": "family"}.get(
            last := package.rpartition(".")[2], last.removesuffix("s")
        )
        raise Usage(
            f"unknown {kind} {name!r}",
            fix=suggest(name, known) or "there are: " + ", ".join(known),
        )
    return importlib.import_module(f"{package}.{name}")
