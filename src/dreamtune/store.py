"""The store: what each stage leaves behind, and how the next one finds it.

    STORE/journal.jsonl               what the store returned, in order; "newest" is its last line;
                                      also what was removed, and tags: a word for one version
    STORE/<kind>/<name>/v003/         one finished artifact, never changed again
        manifest.json                 written last; without a valid one a folder does not count
        run.json, log.jsonl           times, host, metrics: verified, but outside the id
        …                             the payload
    STORE/<kind>/<name>/.work-<key>/  a long job under way; it survives a crash, and
        checkpoints/asked.json        says what it is for
    STORE/<kind>/<name>/.<name>.tmp-<pid>/  a short job under way; swept when its process is gone

key: hash of everything that goes in, known before the work. id: hash of the payload, known after.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import console, fsops
from .artifacts import (
    ASKED,
    CHECKPOINTS,
    MANIFEST,
    RUN_FILES,
    Artifact,
    entry_of,
    hash_of,
    relative,
    walk,
)
from .errors import Damaged, Locked, NotFound, Resources, Usage, suggest
from .journal import Journal, Place, place_of
from .names import check_name, nfc, number
from .surroundings import surroundings

LITTER = ".*.tmp-*"  # what is being written, or was by a process that died
Problems = list[str]


@dataclass
class Draft:
    """An artifact in the making: write the payload below `path`, then `commit`.

    `path/"checkpoints"` is not part of the payload and goes away after the commit is durable.
    """

    store: Store
    path: Path
    resumed: bool
    kind: str
    name: str
    key: str
    recipe: dict[str, Any]
    parents: list[str]

    def describe(self) -> None:
        """Say in it what it is for, for those who find it unfinished."""
        file = self.path / CHECKPOINTS / ASKED
        if not file.is_file():
            asked = {"key": self.key, "recipe": self.recipe, "parents": self.parents}
            fsops.write_json(fsops.make_folder(file.parent) / ASKED, {**asked, **surroundings()})

    def clear(self) -> None:
        """Drop what is in it, to start anew."""
        fsops.remove_tree(self.path)
        self.describe()

    def commit(self, run: dict[str, Any]) -> Artifact:
        """Make it final. `run` (times, host, metrics) becomes run.json, outside the id."""
        for path in list(self.path.rglob(LITTER)):  # what could not be removed when it should have
            fsops.remove_tree(path)
        fsops.write_json(self.path / "run.json", run)
        entries = {relative(p, self.path): entry_of(p) for p in walk(self.path)}
        fsops.seal(self.path)
        run_files = {f: entries.pop(f) for f in RUN_FILES if f in entries}
        version = self.store.next_version(self.kind, self.name)
        artifact = Artifact(
            path=self.path.parent / version,
            kind=self.kind,
            name=self.name,
            version=version,
            key=self.key,
            id=hash_of({file: entry["sha256"] for file, entry in entries.items()}),
            recipe=self.recipe,
            parents=self.parents,
            files=entries,
            run=run_files,
        )
        fsops.write_bytes(self.path / MANIFEST, artifact.manifest_bytes())
        fsops.rename(self.path, artifact.path)
        self.store.journal.add("made", artifact.place, artifact.id)
        fsops.discard(artifact.path / CHECKPOINTS)
        return Artifact.load(artifact.path)


@dataclass(frozen=True)
class Store:
    """A folder of artifacts. Reading it changes nothing, so it may be read-only."""

    path: Path

    @classmethod
    def open(cls, path: Path | None = None) -> Store:
        """The store at `path`, else DREAMTUNE_STORE, else ./artifacts; it need not exist yet."""
        path = Path(path or os.environ.get("DREAMTUNE_STORE") or "artifacts")
        if path.exists() and not path.is_dir():
            raise Usage(f"the store {path} is a file", fix="give --store a folder")
        if path.is_symlink() and not path.exists():
            raise Usage(f"the store {path} is a link to nothing", fix="is its disk mounted?")
        return cls(path)

    @property
    def journal(self) -> Journal:
        """What was returned, removed and tagged."""
        return Journal(self.path)

    # Finding.

    def key(
        self, kind: str, stage_version: int, recipe: dict[str, Any], parents: Sequence[str]
    ) -> str:
        """Hash of all that goes into an artifact: equal keys need no second run."""
        facts = {
            "kind": kind,
            "stage": stage_version,
            "recipe": recipe,
            "parents": [*parents],
            **surroundings(),
        }
        return hash_of(facts)

    def find(self, key: str) -> Artifact | None:
        """A finished artifact with this key whose files are all there."""
        for artifact in reversed(self.list()):
            if artifact.key == key:
                problems = artifact.verify()
                if not problems:
                    return artifact
                console.warn(f"{artifact.path} is damaged ({problems[0]}), so it is made again")
        return None

    def reuse(self, artifact: Artifact) -> Artifact:
        """Return an old artifact as the result of a run: it becomes the newest."""
        try:
            self.journal.add("reused", artifact.place, artifact.id)
        except Resources as e:
            console.warn(f"the reuse is not recorded: {e}")
        return artifact

    def newest(
        self, kind: str, fits: Callable[[Artifact], bool] = lambda artifact: True
    ) -> Artifact | None:
        """The artifact of this kind that the store returned last and that `fits`."""
        return next((a for a in reversed(self.in_order()) if a.kind == kind and fits(a)), None)

    def resolve(self, ref: str, kind: str | None = None) -> Artifact:
        """What `ref` means: a path, name, name@v003, kind/name, tag or the start of an id."""
        if (Path(ref) / MANIFEST).is_file():
            return _of_kind(Artifact.load(Path(ref)), kind)
        ref = nfc(ref)
        name, _, version = ref.partition("@")
        candidates = [a for a in self.in_order() if kind in (None, a.kind)]
        named = [
            a
            for a in candidates
            if name in (a.name, f"{a.kind}/{a.name}")
            and (not version or number(version) == number(a.version))
        ]
        place = self.tags().get(ref)
        tagged = [a for a in candidates if a.place == place]
        started = [a for a in candidates if len(ref) >= 4 and a.id.startswith(ref)]
        hits = named or tagged or started
        if not hits:
            raise self._not_found(ref, kind)
        meant = {a.kind if named else a.id for a in hits}
        if len(meant) > 1:
            raise Usage(
                f"{ref!r} is ambiguous",
                why=", ".join(sorted({f"{a.kind}/{a.label}" for a in hits})),
                fix="name one of them",
            )
        return hits[-1]

    def list(self, kind: str | None = None) -> Sequence[Artifact]:
        """Every artifact with a good manifest, by kind, name and version."""
        found = []
        for folder in self._folders():
            try:
                artifact = Artifact.load(folder)
            except (Damaged, NotFound) as e:
                _passed_over(folder, str(e))
            else:
                found += [artifact.at_home()] if kind in (None, artifact.kind) else []
        return found

    def in_order(self) -> Sequence[Artifact]:
        """Artifacts as last returned, newest at the end; those not in the journal come first."""
        returned = [place_of(e) for e in self.journal.entries() if e["event"] in ("made", "reused")]
        last = {place: at for at, place in enumerate(returned)}
        return sorted(self.list(), key=lambda a: last.get(a.place, -1))

    def verify(self, deep: bool = False) -> dict[Path, Problems]:
        """The problems of every artifact folder; those made from a damaged one are marked too."""
        report: dict[Path, Problems] = {}
        bad: set[str] = set()
        good = []
        for folder in self._folders():
            try:
                artifact = Artifact.load(folder)
            except (Damaged, NotFound) as e:
                report[folder] = [str(e)]
                continue
            report[folder] = artifact.verify(deep)
            good.append(artifact)
            bad |= {artifact.id} if report[folder] else set()
        bad -= {a.id for a in good if not report[a.path]}
        for artifact in good:
            report[artifact.path] += [
                f"made from {parent[:12]}, which is damaged"
                for parent in artifact.parents
                if parent in bad
            ]
        return report

    # Making.

    @contextlib.contextmanager
    def draft(
        self,
        kind: str,
        name: str,
        key: str,
        recipe: dict[str, Any],
        parents: Sequence[str],
        keep: bool = False,
    ) -> Iterator[Draft]:
        """A folder to fill, locked against other processes (Locked names the holder).

        keep: the folder belongs to the key and survives a crash, so that work can be resumed;
        otherwise it goes away unless the block commits.
        """
        name = check_name(name)
        home = self.path / check_name(kind) / name
        self._check_alike(home)
        fsops.make_folder(home)
        self._sweep()
        with fsops.lock(home / ".lock", f"{kind} {name!r}"):
            work = home / (f".work-{key[:16]}" if keep else f".{name}.tmp-{os.getpid()}")
            resumed = work.is_dir()
            fsops.make_folder(work)
            draft = Draft(self, work, resumed, kind, name, key, recipe, [*parents])
            if keep:
                draft.describe()
            try:
                yield draft
            finally:
                if not keep:
                    fsops.discard(work)

    def next_version(self, kind: str, name: str) -> str:
        """One more than any version that is or was there: a label never means two things."""
        used = [number(p.name) for p in (self.path / kind / name).iterdir()]
        past = [place_of(e) for e in self.journal.entries()]
        used += [number(version) for *home, version in past if home == [kind, name]]
        return f"v{max([0, *used]) + 1:03d}"

    def drafts(self) -> Sequence[Path]:
        """Folders of long jobs that are under way or were interrupted."""
        return sorted(p for p in self.path.glob("*/*/.work-*") if p.is_dir())

    # Naming and removing.

    def tags(self) -> dict[str, Place]:
        """Which version each tag means."""
        found: dict[str, Place] = {}
        for entry in self.journal.entries():
            word = entry.get("tag")
            if word and entry["event"] == "tag":
                found[word] = place_of(entry)
            elif word:
                found.pop(word, None)
        return found

    def tag(self, artifact: Artifact, word: str) -> None:
        """Let a word mean this version, and no other one from now on."""
        if any(word == a.name for a in self.list()):
            raise Usage(f"{word!r} is the name of an artifact", fix="choose another tag")
        self.journal.add("tag", artifact.place, artifact.id, tag=check_name(word))

    def untag(self, word: str) -> None:
        """Let a tag mean nothing again."""
        tags = self.tags()
        if word not in tags:
            raise NotFound(f"no tag {word!r} in {self.path}", fix=suggest(word, tags))
        self.journal.add("untag", tags[word], "", tag=word)

    def remove(self, folder: Path) -> None:
        """Delete a version's folder, whatever its state; its label is not used again.

        The journal learns of it last: on a full disk there is no room for a line before.
        """
        kind, name, version = folder.parts[-3:]
        home = self.path / kind / name
        if home / version not in self._folders():
            raise NotFound(f"no version in {folder}")
        with fsops.lock(home / ".lock", f"{kind} {name!r}"):
            trash = home / f".{version}.tmp-{os.getpid()}"
            fsops.rename(home / version, trash)
            fsops.remove_tree(trash)
            self.journal.add("removed", (kind, name, version), "")

    # Inside.

    def _folders(self) -> Sequence[Path]:
        """Every version folder, whatever its state."""
        found = [p for p in self.path.glob("*/*/v*") if number(p.name) and p.is_dir()]
        return sorted(found, key=lambda p: (p.parent, number(p.name)))

    def _check_alike(self, home: Path) -> None:
        """Usage for a name that not every disk can tell from one that is there."""
        names = [other.name for other in home.parent.glob("*")]
        alike = [name for name in names if nfc(name).casefold() == home.name.casefold()]
        if alike and home.name not in names:
            raise Usage(
                f"some disks cannot tell {home.name!r} from {alike[0]!r}, which is there already",
                fix=f"--name {alike[0]}, or a name that differs in more",
            )

    def _sweep(self) -> None:
        """Remove what dead processes left: whoever would still write there holds its lock."""
        litter = [*self.path.glob(f"*/*/{LITTER}"), *self.path.glob(f"*/*/.work-*/**/{LITTER}")]
        litter += self.path.glob(f"*/*/v*/{CHECKPOINTS}")
        for path in litter:
            home = self.path.joinpath(*path.relative_to(self.path).parts[:2])
            with contextlib.suppress(Locked), fsops.lock(home / ".lock", str(home)):
                fsops.discard(path)

    def _not_found(self, ref: str, kind: str | None) -> NotFound:
        known = {a.name for a in self.list(kind)} | {a.label for a in self.list(kind)}
        what = kind or "artifact"
        if Path(ref).is_dir():
            return NotFound(f"no artifact in {ref}", why=f"there is no {MANIFEST}")
        if not known:
            return NotFound(f"no {what} {ref!r}", why=f"{self.path} has no {what} yet")
        return NotFound(
            f"no {what} {ref!r} in {self.path}",
            fix=suggest(ref, known) or "`dreamtune list` shows what there is",
        )


@functools.cache
def _passed_over(folder: Path, why: str) -> None:
    """Said once: a reference may mean an older version because of it."""
    console.warn(f"{folder} is passed over: {why}")


def _of_kind(artifact: Artifact, kind: str | None) -> Artifact:
    if kind not in (None, artifact.kind):
        raise Usage(f"{artifact.path} is of kind {artifact.kind}, not {kind}")
    return artifact
