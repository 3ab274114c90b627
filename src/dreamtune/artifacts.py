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
import dataclasses
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import console, fsops
from .errors import Damaged, Locked, NotFound, Resources, Unsafe, Usage, suggest

SCHEMA = 1  # of manifests; when it grows, MIGRATIONS learns to read those before it
Problems = list[str]
Place = tuple[str, str, str]  # kind, name, version
Entry = dict[str, Any]  # size, sha256
PLACE = ("kind", "name", "version")
FIELDS = ("kind", "name", "version", "key", "id", "recipe", "parents", "files", "run")
MANIFEST, CHECKPOINTS, ASKED = "manifest.json", "checkpoints", "asked.json"
LITTER = ".*.tmp-*"  # what is being written, or was by a process that died
MOST_MANIFEST = 1 << 28  # bytes; one of 200,000 photos has 27 MB
RUN_FILES = ("run.json", "log.jsonl")
Manifest = dict[str, Any]
MIGRATIONS: dict[int, Callable[[Manifest], Manifest]] = {}  # schema -> to the one after it
LIBRARIES = (
    "accelerate", "diffusers", "dreamtune", "numpy", "peft", "pillow", "torch", "transformers",
)  # fmt: skip


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
        return _dumped({"schema": SCHEMA, **{field: getattr(self, field) for field in FIELDS}})

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
        return dataclasses.replace(self, name=_nfc(self.path.parent.name), version=self.path.name)

    def read_json(self, file: str) -> Any:
        """A JSON file of the artifact; Damaged when it is missing or unreadable."""
        try:
            return json.loads((self.path / file).read_bytes())
        except (OSError, ValueError, RecursionError) as e:
            raise Damaged(f"{self.path / file} is damaged", why=str(e)) from None

    def verify(self, deep: bool = False) -> list[str]:
        """Problems, empty when there are none: presence and sizes, with `deep` every byte too."""
        expected = {**self.files, **self.run}
        found = {_relative(p, self.path): p for p in _walk(self.path)}
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
        entries = {_relative(p, self.path): _entry(p) for p in _walk(self.path)}
        fsops.seal(self.path)
        run_files = {f: entries.pop(f) for f in RUN_FILES if f in entries}
        version = self.store._next_version(self.kind, self.name)
        artifact = Artifact(
            path=self.path.parent / version,
            kind=self.kind,
            name=self.name,
            version=version,
            key=self.key,
            id=_hash({file: entry["sha256"] for file, entry in entries.items()}),
            recipe=self.recipe,
            parents=self.parents,
            files=entries,
            run=run_files,
        )
        fsops.write_bytes(self.path / MANIFEST, artifact.manifest_bytes())
        fsops.rename(self.path, artifact.path)
        self.store._record("made", artifact.place, artifact.id)
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
        return _hash(facts)

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
            self._record("reused", artifact.place, artifact.id)
        except Resources as e:
            console.warn(f"the reuse is not recorded: {e}")
        return artifact

    def newest(
        self, kind: str, fits: Callable[[Artifact], bool] = lambda artifact: True
    ) -> Artifact | None:
        """The artifact of this kind that the store returned last and that `fits`."""
        return next((a for a in reversed(self._in_order()) if a.kind == kind and fits(a)), None)

    def resolve(self, ref: str, kind: str | None = None) -> Artifact:
        """What `ref` means: a path, name, name@v003, kind/name, tag or the start of an id."""
        if (Path(ref) / MANIFEST).is_file():
            return _of_kind(Artifact.load(Path(ref)), kind)
        ref = _nfc(ref)
        name, _, version = ref.partition("@")
        candidates = [a for a in self._in_order() if kind in (None, a.kind)]
        named = [
            a
            for a in candidates
            if name in (a.name, f"{a.kind}/{a.name}")
            and (not version or _number(version) == _number(a.version))
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

    def drafts(self) -> Sequence[Path]:
        """Folders of long jobs that are under way or were interrupted."""
        return sorted(p for p in self.path.glob("*/*/.work-*") if p.is_dir())

    # Naming and removing.

    def tags(self) -> dict[str, Place]:
        """Which version each tag means."""
        found: dict[str, Place] = {}
        for entry in self._entries():
            word = entry.get("tag")
            if word and entry["event"] == "tag":
                found[word] = _place(entry)
            elif word:
                found.pop(word, None)
        return found

    def tag(self, artifact: Artifact, word: str) -> None:
        """Let a word mean this version, and no other one from now on."""
        if any(word == a.name for a in self.list()):
            raise Usage(f"{word!r} is the name of an artifact", fix="choose another tag")
        self._record("tag", artifact.place, artifact.id, tag=check_name(word))

    def untag(self, word: str) -> None:
        """Let a tag mean nothing again."""
        tags = self.tags()
        if word not in tags:
            raise NotFound(f"no tag {word!r} in {self.path}", fix=suggest(word, tags))
        self._record("untag", tags[word], "", tag=word)

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
            self._record("removed", (kind, name, version), "")

    # Inside.

    @property
    def _journal(self) -> Path:
        return self.path / "journal.jsonl"

    def _folders(self) -> Sequence[Path]:
        """Every version folder, whatever its state."""
        found = [p for p in self.path.glob("*/*/v*") if _number(p.name) and p.is_dir()]
        return sorted(found, key=lambda p: (p.parent, _number(p.name)))

    def _entries(self) -> Sequence[dict[str, Any]]:
        """The journal's readable lines, in order; a line torn by a crash is passed over."""
        return [entry for entry in map(_parse_entry, self._lines()) if entry]

    def _lines(self) -> Sequence[bytes]:
        if not self._journal.exists():
            return []
        try:
            return self._journal.read_bytes().splitlines()
        except OSError as e:
            raise Damaged(
                f"{self._journal} cannot be read",
                why=os.strerror(e.errno or 0),
                fix="move it away: what it says of the order of things is then forgotten",
            ) from None

    def unreadable_lines(self) -> int:
        """How many lines of the journal were torn or harmed."""
        return len([line for line in self._lines() if line.strip() and not _parse_entry(line)])

    def _record(self, event: str, place: Place, id: str, **more: str) -> None:
        """Append to the journal what became of an artifact."""
        fsops.make_folder(self.path)
        with fsops.lock(self.path / ".lock", "the journal", wait=True):
            entries = self._entries()
            seq = entries[-1]["seq"] + 1 if entries else 1
            entry = {"seq": seq, "event": event, **dict(zip(PLACE, place, strict=True)), "id": id}
            fsops.append_line(
                self._journal, json.dumps({**entry, **more, "time": round(time.time(), 3)})
            )

    def _in_order(self) -> Sequence[Artifact]:
        """Artifacts as last returned, newest at the end; those not in the journal come first."""
        returned = [_place(e) for e in self._entries() if e["event"] in ("made", "reused")]
        last = {place: at for at, place in enumerate(returned)}
        return sorted(self.list(), key=lambda a: last.get(a.place, -1))

    def _check_alike(self, home: Path) -> None:
        """Usage for a name that not every disk can tell from one that is there."""
        names = [other.name for other in home.parent.glob("*")]
        alike = [name for name in names if _nfc(name).casefold() == home.name.casefold()]
        if alike and home.name not in names:
            raise Usage(
                f"some disks cannot tell {home.name!r} from {alike[0]!r}, which is there already",
                fix=f"--name {alike[0]}, or a name that differs in more",
            )

    def _next_version(self, kind: str, name: str) -> str:
        """One more than any version that is or was there: a label never means two things."""
        used = [_number(p.name) for p in (self.path / kind / name).iterdir()]
        past = [_place(e) for e in self._entries()]
        used += [_number(version) for *home, version in past if home == [kind, name]]
        return f"v{max([0, *used]) + 1:03d}"

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


# References and names.


def parse_ref(text: str) -> tuple[str, dict[str, str], float | None]:
    """Split "rex@v003@step=300@0.8" into ("rex@v003", {"step": "300"}, 0.8)."""
    ref, options, weight = text, {}, None
    while "@" in ref and not Path(ref).exists():
        head, _, last = ref.rpartition("@")
        if _number(last):
            break
        key, equals, value = last.partition("=")
        if equals and key:
            options[key] = value
        elif weight is None:
            weight = _weight(last, text)
        else:
            raise Usage(f"{text!r} has two weights")
        ref = head
    return ref, options, weight


def _weight(word: str, text: str) -> float:
    if not re.fullmatch(r"-?\d*\.?\d+", word):
        raise Usage(
            f"cannot read @{word} in {text!r}",
            fix="write name, name@v003, name@0.8 or name@step=300",
        )
    return float(word)


_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def _nfc(text: str) -> str:
    """With each accent composed: disks and keyboards differ in that."""
    import unicodedata

    return unicodedata.normalize("NFC", text)


def check_name(name: str) -> str:
    """`name`, when it can be a folder anywhere; Usage otherwise."""
    name = _nfc(name)
    ok = re.fullmatch(r"\w[\w.+-]*", name) and not name.endswith(".") and len(name.encode()) <= 100
    if not ok or _RESERVED.fullmatch(name):
        raise Usage(
            f"{name[:120]!r} cannot be a name",
            why="a name is 1 to 100 letters, digits and . _ + -, and begins with a letter or digit",
            fix=f"for example {slug(name)!r}",
        )
    return name


def slug(text: str) -> str:
    """A valid name that resembles `text`, such as a folder's name."""
    plain = re.sub(r"[^\w.+-]+", "-", _nfc(text)).strip(".+-_")
    plain = plain.encode("utf-8", "ignore")[:60].decode("utf-8", "ignore").rstrip(".")
    return f"{plain}-1" if _RESERVED.fullmatch(plain) else plain or "untitled"


# What goes into a key.


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that an artifact's bytes depend on; none is imported."""
    from importlib.metadata import PackageNotFoundError, version

    from . import __version__

    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "dreamtune": __version__}


def thread_count() -> int:
    """Threads that sums are split over: OMP_NUM_THREADS, else the CPUs this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if asked.isdecimal():
        return int(asked)
    mine = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(mine(0)) if mine else os.cpu_count() or 1


def surroundings() -> dict[str, Any]:
    """What else than recipe and parents decides the bytes of an artifact."""
    return {"libraries": library_versions(), "threads": thread_count()}


# Files of an artifact.


def _current(manifest: Manifest, data: bytes, file: Path) -> Manifest:
    """A manifest as this dreamtune writes it; Damaged when it is newer or was changed.

    data: the bytes that it was read from, and the only ones that it can have
    """
    if type(manifest["schema"]) is int and manifest["schema"] > SCHEMA:
        raise Damaged(
            f"{file} has schema {manifest['schema']}, this dreamtune reads up to {SCHEMA}",
            fix="use a newer dreamtune",
        )
    if _dumped(manifest) != data:
        raise ValueError
    for schema in range(manifest["schema"], SCHEMA):
        manifest = MIGRATIONS[schema](manifest)
    return manifest


def _dumped(manifest: Manifest) -> bytes:
    """The bytes of a manifest of any schema, its own hash among them."""
    body = {field: value for field, value in manifest.items() if field != "sha256"}
    return fsops.dump_json({**body, "sha256": _hash(body)}).encode()


def _hash(obj: Any) -> str:
    """SHA-256 of plain data: equal data, equal hash."""
    return hashlib.sha256(fsops.dump_json(obj).encode()).hexdigest()


def _walk(folder: Path) -> Iterator[Path]:
    """Everything in an artifact that is no folder, without manifest and checkpoints."""
    for root, folders, files in os.walk(folder):
        top = Path(root) == folder
        if top and CHECKPOINTS in folders:
            folders.remove(CHECKPOINTS)
        links = [name for name in folders if Path(root, name).is_symlink()]
        for name in [*files, *links]:
            if not (top and name == MANIFEST):
                yield Path(root, name)


def _parse_entry(line: bytes) -> dict[str, Any] | None:
    """A line of the journal; None for one that was not written so."""
    try:
        entry = json.loads(line)
        texts = [entry[field] for field in ("event", *PLACE, "id")]
        return entry if all(isinstance(t, str) for t in texts) and entry["seq"] >= 0 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _place(entry: Entry) -> Place:
    return entry["kind"], entry["name"], entry["version"]


@functools.cache
def _passed_over(folder: Path, why: str) -> None:
    """Said once: a reference may mean an older version because of it."""
    console.warn(f"{folder} is passed over: {why}")


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _entry(path: Path) -> Entry:
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


def _of_kind(artifact: Artifact, kind: str | None) -> Artifact:
    if kind not in (None, artifact.kind):
        raise Usage(f"{artifact.path} is of kind {artifact.kind}, not {kind}")
    return artifact


def _number(label: str) -> int:
    """3 for "v003", 0 for what is no version label."""
    return int(label[1:]) if re.fullmatch(r"v\d{1,200}", label, re.ASCII) else 0
