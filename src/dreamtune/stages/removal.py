"""rm: what may be deleted, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreamtune.errors import Usage
from dreamtune.store import Store


def folder(store: Store, ref: str, kind: str | None) -> Path:
    """The version's folder that a reference means; a folder can be named though it is damaged."""
    named = Path(ref)
    if not named.is_dir():
        return store.resolve(ref, kind).path
    for folder in store._folders():
        if folder.samefile(named):
            return folder
    raise Usage(f"{named} is not an artifact of {store.path}", fix="name its store with --store")


def check(store: Store, folders: Sequence[Path]) -> None:
    """Usage when something that stays was made from one of them, or when one has a tag."""
    going = set(folders)
    artifacts = store.list()
    staying = [a for a in artifacts if a.path not in going]
    safe = {a.id for a in staying}  # another version with the same bytes is as good
    tags = {place: word for word, place in store.tags().items()}
    for artifact in (a for a in artifacts if a.path in going):
        made = [a.label for a in staying if artifact.id in a.parents]
        if made and artifact.id not in safe:
            raise Usage(
                f"{artifact.label} stays",
                why=f"{_some(made)} made from it",
                fix="remove them too, or use --force",
            )
        if artifact.place in tags:
            word = tags[artifact.place]
            raise Usage(
                f"{artifact.label} stays",
                why=f"it has the tag {word!r}",
                fix=f"dreamtune tag --delete {word}, or use --force",
            )


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return f"{', '.join(labels[:3])}{more} {'was' if len(labels) == 1 else 'were'}"
