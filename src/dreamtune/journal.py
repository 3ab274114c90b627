"""journal.jsonl: what a store returned, removed and tagged, in order."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import fsops
from .errors import Damaged

Place = tuple[str, str, str]  # kind, name, version
Line = dict[str, Any]
PLACE = ("kind", "name", "version")


class Journal:
    """That of the store in a folder."""

    def __init__(self, store: Path) -> None:
        self.path = store / "journal.jsonl"

    def entries(self) -> Sequence[Line]:
        """The journal's readable lines, in order; a line torn by a crash is passed over."""
        return [entry for entry in map(_parsed, self._lines()) if entry]

    def _lines(self) -> Sequence[bytes]:
        if not self.path.exists():
            return []
        try:
            return self.path.read_bytes().splitlines()
        except OSError as e:
            raise Damaged(
                f"{self.path} cannot be read",
                why=os.strerror(e.errno or 0),
                fix="move it away: what it says of the order of things is then forgotten",
            ) from None

    def unreadable_lines(self) -> int:
        """How many lines of the journal were torn or harmed."""
        return len([line for line in self._lines() if line.strip() and not _parsed(line)])

    def add(self, event: str, place: Place, id: str, **more: str) -> None:
        """Append to the journal what became of an artifact."""
        fsops.make_folder(self.path.parent)
        with fsops.lock(self.path.with_name(".lock"), "the journal", wait=True):
            entries = self.entries()
            seq = entries[-1]["seq"] + 1 if entries else 1
            entry = {"seq": seq, "event": event, **dict(zip(PLACE, place, strict=True)), "id": id}
            fsops.append_line(
                self.path, json.dumps({**entry, **more, "time": round(time.time(), 3)})
            )


def _parsed(line: bytes) -> Line | None:
    """A line of the journal; None for one that was not written so."""
    try:
        entry = json.loads(line)
        texts = [entry[field] for field in ("event", *PLACE, "id")]
        return entry if all(isinstance(t, str) for t in texts) and entry["seq"] >= 0 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def place_of(line: Line) -> Place:
    """Which version a line is about."""
    return line["kind"], line["name"], line["version"]
