"""A disk that can lose its power: what a tape of changes may leave behind.

What was written and not synced may be there, gone, zeros or half there; a name that was made,
moved or removed may be so or not until its folder was synced, each on its own and in any
combination. That is what POSIX allows, and more than most file systems do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.tape import Op

Tree = dict[str, bytes | None]  # path -> content; None for a folder


@dataclass(eq=False)
class File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    whole: bytes | None = b""  # the same as data, as long as nothing is written

    def now(self) -> bytes:
        """One object for one content: its hash is computed once."""
        if self.whole is None:
            self.whole = bytes(self.data)
        return self.whole

    def clean(self) -> bool:
        return self.now() == self.synced


@dataclass(eq=False)
class Folder:
    names: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)
    pending: list[dict[str, Node | None]] = field(default_factory=list)

    def change(self, names: Mapping[str, Node | None]) -> None:
        """Give names to nodes, or take them away (None), all at once."""
        self.pending.append(dict(names))
        _apply(self.names, names)

    def sync(self) -> None:
        self.synced, self.pending = dict(self.names), []


Node = File | Folder


def _apply(names: dict[str, Node], change: Mapping[str, Node | None]) -> None:
    for name, node in change.items():
        names.pop(name, None)
        if node is not None:
            names[name] = node


@dataclass(frozen=True)
class Luck:
    """What a power cut spares: a pending change of a name, and the data of a file."""

    name: Callable[[], bool]
    data: Callable[[File], bytes]


def _kept(file: File) -> bytes:
    return file.now()


def _lost(file: File) -> bytes:
    return file.synced


def _zeros(file: File) -> bytes:
    """The length arrived, the data did not."""
    if file.clean():
        return file.synced
    same = len(file.synced) if file.data.startswith(file.synced) else 0
    return file.synced[:same] + bytes(len(file.data) - same)


def _torn(file: File) -> bytes:
    """Half of what is new arrived."""
    if file.clean():
        return file.synced
    same = len(file.synced) if file.data.startswith(file.synced) else 0
    return bytes(file.data[: (same + len(file.data) + 1) // 2])


KILLED = Luck(lambda: True, _kept)  # the process died and the machine did not
CUTS = {
    "killed": KILLED,
    "nothing more": Luck(lambda: False, _lost),
    "names only": Luck(lambda: True, _lost),
    "data only": Luck(lambda: False, _kept),
    "zeros": Luck(lambda: True, _zeros),
    "torn": Luck(lambda: True, _torn),
}


def dice(seed: int) -> Luck:
    rng = random.Random(seed)
    return Luck(
        lambda: rng.random() < 0.5,
        lambda file: rng.choice((_kept, _lost, _zeros, _torn))(file),
    )


class Disk:
    """Files and folders as programs see them, and as they are on the platter."""

    def __init__(self, root: Path) -> None:
        """All that is below `root` now is durable."""
        self.root = Folder()
        for path in sorted(root.rglob("*")):
            node = Folder() if path.is_dir() else _durable(path.read_bytes())
            folder, name = self._place(path.relative_to(root).as_posix())
            folder.names[name] = folder.synced[name] = node

    def _find(self, path: str) -> Node:
        node: Node = self.root
        for name in Path(path).parts:
            assert isinstance(node, Folder)
            node = node.names[name]
        return node

    def _place(self, path: str) -> tuple[Folder, str]:
        folder = self._find(str(Path(path).parent))
        assert isinstance(folder, Folder)
        return folder, Path(path).name

    def apply(self, op: Op) -> None:
        """Do what a tape says."""
        kind, path, *rest = op
        if kind in ("create", "mkdir"):
            folder, name = self._place(path)
            folder.change({name: File() if kind == "create" else Folder()})
        elif kind in ("unlink", "rmdir"):
            folder, name = self._place(path)
            folder.change({name: None})
        elif kind == "rename":
            folder, name = self._place(path)
            other, new = self._place(rest[0])
            assert folder is other, f"{path} is moved to another folder: not atomic here"
            folder.change({name: None, new: folder.names[name]})
        elif kind in ("write", "truncate"):
            file = self._find(path)
            assert isinstance(file, File)
            _write(file, *rest)
        elif kind == "fsync":
            node = self._find(path)
            if isinstance(node, File):
                node.synced = node.now()
            else:
                node.sync()

    def survivors(self, luck: Luck) -> Tree:
        """What is there after a power cut."""
        tree: Tree = {}

        def walk(folder: Folder, at: str) -> None:
            names = dict(folder.synced)
            for change in folder.pending:
                if luck.name():
                    _apply(names, change)
            for name, node in names.items():
                path = f"{at}{name}"
                if isinstance(node, File):  # what a lock holds is only there to be shown
                    tree[path] = luck.data(node) if name != ".lock" else b""
                else:
                    tree[path] = None
                    walk(node, f"{path}/")

        walk(self.root, "")
        return tree


def _durable(data: bytes) -> File:
    return File(bytearray(data), data, data)


def _write(file: File, offset: int, data: bytes | None = None) -> None:
    file.whole = None
    if data is None:  # truncate
        del file.data[offset:]
    else:
        file.data[offset : offset + len(data)] = data


def put_down(tree: Tree, folder: Path) -> Path:
    """Make the tree real."""
    folder.mkdir(parents=True)
    for path, data in sorted(tree.items()):
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)
    return folder


@dataclass(frozen=True)
class Crash:
    """The disk after a power cut behind the first `done` changes of a tape."""

    done: int
    cut: str
    tree: Tree

    def __str__(self) -> str:
        return f"after {self.done} changes, {self.cut}"


def crashes(before: Path, ops: Sequence[Op], throws: int = 25) -> Iterator[Crash]:
    """Every different state that a power cut at any point can leave, and random ones of the rest.

    before: the folder as it was when the tape began. Marks ("mark", …) change nothing.
    """
    disk, seen = Disk(before), set()
    for done in range(len(ops) + 1):
        if done and ops[done - 1][0] == "mark":
            seen.clear()  # the same disk, and more is promised of it
        elif done:
            disk.apply(ops[done - 1])
        cuts = CUTS | {f"dice {i}": dice(1000 * done + i) for i in range(throws)}
        for cut, luck in cuts.items():
            tree = disk.survivors(luck)
            digest = hash(frozenset(tree.items()))
            if digest not in seen:
                seen.add(digest)
                yield Crash(done, cut, tree)
