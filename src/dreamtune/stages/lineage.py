"""log: where an artifact, or a file that one holds, came from, down to the photos."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from dreamtune import fsops
from dreamtune.artifacts import Artifact
from dreamtune.errors import NotFound
from dreamtune.store import Store

Node = dict[str, Any]
PHOTOS = "samples.jsonl"  # a prep artifact's list of its photos


def trace(store: Store, ref: str, kind: str | None = None) -> Node:
    """The artifact that `ref` means and, under "from", what each was made from.

    ref: as everywhere, or a file, such as a picture: the artifact that holds the same bytes.
    """
    file = Path(ref)
    artifact = _holder(store, file) if file.is_file() else store.resolve(ref, kind)
    by_id = {a.id: a for a in store.list()}
    return _node(artifact, by_id)


def _holder(store: Store, file: Path) -> Artifact:
    """The artifact with a file of these bytes, the last returned first."""
    digest = fsops.hash_file(file)
    for artifact in reversed(store.in_order()):
        if any(entry["sha256"] == digest for entry in artifact.files.values()):
            return artifact
    raise NotFound(
        f"no artifact in {store.path} holds the bytes of {file}",
        why="it was changed since, or made elsewhere",
        fix="name the store that it comes from with --store",
    )


def _node(artifact: Artifact, by_id: dict[str, Artifact]) -> Node:
    node: Node = {"kind": artifact.kind, "label": artifact.label, "id": artifact.id}
    node |= {"path": str(artifact.path), "recipe": artifact.recipe}
    if PHOTOS in artifact.files:
        node["photos"] = photos(artifact)
    node["from"] = [
        _node(by_id[parent], by_id) if parent in by_id else {"id": parent, "missing": True}
        for parent in artifact.parents
    ]
    return node


def photos(artifact: Artifact) -> list[dict[str, str]]:
    """Name and SHA-256 of each photo as it is trained on."""
    found = []
    for line in (artifact.path / PHOTOS).read_text("utf-8", "surrogateescape").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            found.append({"source": str(row["source"]), "sha256": str(row["sha256"])})
    return found


def lines(node: Node, depth: int = 0) -> list[str]:
    """The tree as text: one artifact or photo a line, what it was made from below it."""
    at = "  " * depth
    if node.get("missing"):
        return [f"{at}{node['id'][:12]}  not in this store"]
    shown = [f"{at}{node['kind']} {node['label']}  {node['id'][:12]}"]
    for photo in node.get("photos", []):
        name = photo["source"].replace("\n", " ")
        shown.append(f"{at}  {photo['sha256'][:12]}  {name}")
    for parent in node["from"]:
        shown += lines(parent, depth + 1)
    return shown
