"""A finished artifact: a folder that is never changed again, and the manifest that describes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import fsops
from .errors import Damaged, NotFound, Unsafe
from .journal import Place
from .names import nfc

SCHEMA = 1  # of manifests; when it grows, MIGRATIONS learns to read those before it
Entry = dict[str, Any]  # size, sha256
FIELDS = ("kind", "name", "version", "key", "id", "recipe", "parents", "files", "run")
MANIFEST, CHECKPOINTS, ASKED = "manifest.json", "checkpoints", "asked.json"
MOST_MANIFEST = 1 << 28  # bytes; one of 200,000 photos has 27 MB
RUN_FILES = ("run.json", "log.jsonl")
Manifest = dict[str, Any]
MIGRATIONS: dict[int, Callable[[Manifest], Manifest]] = {}  # schema -> to the one after it


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: a folder and the manifest that describes it."""

    path: Path
    kind: str
    name: str
    version: str  # "v003"
    key: str
    id: str
    recipe: dict[str, Any]
    parents: list[str]  # ids
    files: dict[str, Entry]  # the payload
    run: dict[str, Entry]

    @classmethod
    def load(cls, path: Path) -> Artifact:
        """The artifact in folder `path`; NotFound without a manifest, Damaged with a bad one."""
        file = path / MANIFEST
        if not file.is_file():  # opening a FIFO would wait for ever
            raise NotFound(f"no artifact in {path}", why=f"there is no {MANIFEST}")
        if file.stat().st_size > MOST_MANIFEST:
            raise Damaged(f"{file} is too large to be a manifest")
        try:
            data = file.read_bytes()
        except OSError as e:
            raise Damaged(f"{file} cannot be read", why=os.strerror(e.errno or 0)) from None
        try:
            manifest = _current(json.loads(data), data, file)
            artifact = cls(path, **{field: manifest[field] for field in FIELDS})
            if artifact._sound():
                return artifact
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise Damaged(f"{file} is damaged", why="its bytes are not those that were written")

    def _sound(self) -> bool:
        """Whether every field is of its kind: a manifest can be made by anybody."""
        texts = [self.kind, self.name, self.version, self.key, self.id, *self.parents]
        entries = [*self.files.items(), *self.run.items()]
        texts += [name for name, _ in entries] + [entry["sha256"] for _, entry in entries]
        whole = all(type(entry["size"]) is int for _, entry in entries)
        kinds = isinstance(self.recipe, dict) and isinstance(self.parents, list)
        return whole and kinds and all(isinstance(text, str) for text in texts)

    def manifest_bytes(self) -> bytes:
        """The only bytes that the manifest of this artifact can have, its own hash among them."""
        return dumped({"schema": SCHEMA, **{field: getattr(self, field) for field in FIELDS}})

    @property
    def label(self) -> str:
        """How people refer to it: "rex@v003"."""
        return f"{self.name}@{self.version}"

    @property
    def place(self) -> Place:
        """Where it is in its store."""
        return self.kind, self.name, self.version

    def at_home(self) -> Artifact:
        """Itself under the name and version of its folder, which its owner may have renamed."""
        return dataclasses.replace(self, name=nfc(self.path.parent.name), version=self.path.name)

    def read_json(self, file: str) -> Any:
        """A JSON file of the artifact; Damaged when it is missing or unreadable."""
        try:
            return json.loads((self.path / file).read_bytes())
        except (OSError, ValueError, RecursionError) as e:
            raise Damaged(f"{self.path / file} is damaged", why=str(e)) from None

    def verify(self, deep: bool = False) -> list[str]:
        """Problems, empty when there are none: presence and sizes, with `deep` every byte too."""
        expected = {**self.files, **self.run}
        found = {relative(p, self.path): p for p in walk(self.path)}
        problems = [f"{f}: missing" for f in sorted(expected.keys() - found.keys())]
        problems += [f"{f}: not in the manifest" for f in sorted(found.keys() - expected.keys())]
        for file in sorted(expected.keys() & found.keys()):
            problem = _compare(found[file], expected[file], deep)
            problems += [f"{file}: {problem}"] if problem else []
        return problems

    def check(self, deep: bool = False) -> Artifact:
        """Itself, when nothing is wrong with it; else Damaged with the first problem."""
        problems = self.verify(deep)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise Damaged(
                f"{self.label} is damaged",
                why=problems[0] + more,
                fix="make it again, or see `dreamtune verify`",
            )
        return self


def _current(manifest: Manifest, data: bytes, file: Path) -> Manifest:
    """A manifest as this dreamtune writes it; Damaged when it is newer or was changed.

    data: the bytes that it was read from, and the only ones that it can have
    """
    if type(manifest["schema"]) is int and manifest["schema"] > SCHEMA:
        raise Damaged(
            f"{file} has schema {manifest['schema']}, this dreamtune reads up to {SCHEMA}",
            fix="use a newer dreamtune",
        )
    if dumped(manifest) != data:
        raise ValueError
    for schema in range(manifest["schema"], SCHEMA):
        manifest = MIGRATIONS[schema](manifest)
    return manifest


def dumped(manifest: Manifest) -> bytes:
    """The bytes of a manifest of any schema, its own hash among them."""
    body = {field: value for field, value in manifest.items() if field != "sha256"}
    return fsops.dump_json({**body, "sha256": hash_of(body)}).encode()


def hash_of(obj: Any) -> str:
    """SHA-256 of plain data: equal data, equal hash."""
    return hashlib.sha256(fsops.dump_json(obj).encode()).hexdigest()


def walk(folder: Path) -> Iterator[Path]:
    """Everything in an artifact that is no folder, without manifest and checkpoints."""
    for root, folders, files in os.walk(folder):
        top = Path(root) == folder
        if top and CHECKPOINTS in folders:
            folders.remove(CHECKPOINTS)
        links = [name for name in folders if Path(root, name).is_symlink()]
        for name in [*files, *links]:
            if not (top and name == MANIFEST):
                yield Path(root, name)


def relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def entry_of(path: Path) -> Entry:
    if not _plain(path):
        raise Unsafe(f"{path} is not a plain file", fix="copy it instead")
    return {"size": path.stat().st_size, "sha256": fsops.hash_file(path)}


def _compare(path: Path, entry: Entry, deep: bool) -> str:
    """What is wrong with a file, or ""."""
    if not _plain(path):
        return "is not a plain file"
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"{size:,} bytes instead of {entry['size']:,}"
        if deep and fsops.hash_file(path) != entry["sha256"]:
            return "its bytes have changed"
    except OSError as e:
        return f"cannot be read ({os.strerror(e.errno or 0)})"
    return ""
