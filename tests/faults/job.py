"""A small job that does all that the store is used for, and what is promised of it on the way."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dreamtune import checkpoints, draws, fsops
from dreamtune.artifacts import Artifact
from dreamtune.loop import Step
from dreamtune.stages.log import Log
from dreamtune.store import Store
from tests.faults import some, tape
from tests.faults.disk import Crash, crashes, put_down
from tests.faults.tape import Op

STEPS, SAVES = 7, (2, 4, 5, 6)


def job(store: Store, mark: Callable[[Op], None] = lambda op: None) -> list[str]:
    """Prepare, train with checkpoints, prepare again, use the first again; the ids."""
    photos = prepare(store, b"first", mark)
    adapter = train(store, photos, mark)
    second = prepare(store, b"second", mark)
    _reused(store, photos, mark)
    return [photos.id, adapter.id, second.id]


def _reused(store: Store, artifact: Artifact, mark: Callable[[Op], None]) -> Artifact:
    store.reuse(artifact)
    mark(("mark", "newest", artifact.id))
    return artifact


def prepare(store: Store, photo: bytes, mark: Callable[[Op], None]) -> Artifact:
    recipe = {"photo": photo.decode()}
    key = store.key("prep", 1, recipe, [])
    done = store.find(key)
    if done:
        return _reused(store, done, mark)
    with store.draft("prep", "rex", key, recipe, []) as draft:
        images = fsops.make_folder(draft.path / "images")
        fsops.put(images / "0001.png", photo * 40)
        fsops.write_text(draft.path / "samples.jsonl", "{}\n")
        return _made(draft.commit({}), mark)


def train(store: Store, photos: Artifact, mark: Callable[[Op], None]) -> Artifact:
    recipe = {"steps": STEPS}
    key = store.key("adapter", 1, recipe, [photos.id])
    done = store.find(key)
    if done:
        return _reused(store, done, mark)
    with store.draft("adapter", "rex", key, recipe, [photos.id], keep=True) as draft:
        folder = draft.path / "checkpoints"
        weights = learn(draft.path, folder, lambda step: mark(("mark", "saved", key[:16], step)))
        fsops.write_safetensors(draft.path / "rex.safetensors", {"w": weights.detach()})
        return _made(draft.commit({"steps": STEPS}), mark)


def learn(path: Path, folder: Path, saved: Callable[[int], None]) -> torch.Tensor:
    """A few updates with drawn noise, from the newest checkpoint on; the weights."""
    weights = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weights], lr=0.1)
    found = checkpoints.latest(folder)
    start = checkpoints.step_of(found) if found else 0
    if found:
        checkpoints.restore(found, {"w": weights}, optimizer)
    log = Log(path / "log.jsonl", start)
    for step in range(start, STEPS):
        noise = torch.randn(3, generator=draws.generator(0, "noise", step))
        loss = ((weights - noise) ** 2).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log.add(Step(step + 1, loss.detach(), torch.ones(()), 0.1))
        if step + 1 in SAVES:
            log.flush()
            checkpoints.save(folder, step + 1, {"w": weights}, optimizer)
            saved(step + 1)
    log.flush()
    return weights


def _made(artifact: Artifact, mark: Callable[[Op], None]) -> Artifact:
    mark(("mark", "made", artifact.id))
    mark(("mark", "newest", artifact.id))
    return artifact


# What is promised.


@dataclass
class Promised:
    """What the store has said is safe."""

    made: set[str] = field(default_factory=set)  # ids of artifacts
    newest: set[str] = field(default_factory=set)  # what may have been returned last
    saved: dict[str, list[int]] = field(default_factory=dict)  # start of a run's key -> steps

    @classmethod
    def after(cls, ops: list[Op], done: int) -> Promised:
        """What the marks among the first `done` changes of a tape say."""
        promised = cls()
        for _, event, *facts in (op for op in ops[:done] if op[0] == "mark"):
            if event == "made":
                promised.made.add(facts[0])
            elif event == "removed":
                promised.made.discard(facts[0])
            elif event == "newest":
                promised.newest = {facts[0]}
            elif event == "saved":
                promised.saved.setdefault(facts[0], []).append(facts[1])
        coming = (op[2] for op in ops[done:] if op[:2] == ("mark", "newest"))
        promised.newest |= {*itertools.islice(coming, 1)} if promised.newest else set()
        return promised


def violations(root: Path, promised: Promised) -> list[str]:
    """Promises that the folder of a store does not keep."""
    store = Store.open(root)
    report = store.verify(deep=True)
    found = [f"{path.name}: {problem}" for path, some in report.items() for problem in some]
    there = {a.id: a for a in store.list()}
    found += [f"artifact {id[:6]} is lost" for id in promised.made - there.keys()]
    last = [a.id for a in store.in_order()][-1:]
    if promised.newest and not promised.newest.issuperset(last):
        found.append("which artifact was returned last is lost")
    finished = {a.key[:16] for a in there.values()}
    for key, steps in promised.saved.items():
        if key not in finished:
            found += _checkpoints(next(root.glob(f"*/*/.work-{key}"), root), steps)
    return found


def _checkpoints(draft: Path, steps: list[int]) -> list[str]:
    """As many whole checkpoints as were saved, up to what is kept, and none too old."""
    folder = draft / "checkpoints"
    whole = [note for note in folder.glob("step-*.json") if checkpoints.whole(note)]
    found = checkpoints.latest(folder)
    lost = [] if found and checkpoints.step_of(found) >= steps[-1] else [f"step {steps[-1]}"]
    few = len(whole) < min(checkpoints.KEEP, len(steps))
    return [f"checkpoint of {s} is lost" for s in lost] + ["too few checkpoints"] * few


# Running it.


def taped(tmp_path: Path) -> tuple[list[Op], list[str]]:
    """The tape of the job in an empty store, and the ids that it made."""
    root = tmp_path / "store"
    root.mkdir(parents=True)
    return tape_of(root)


def tape_of(root: Path) -> tuple[list[Op], list[str]]:
    ops: list[Op] = []
    with tape.watch(root, after=ops.append):
        ids = job(Store(root), ops.append)
    return ops, ids


def states(
    before: Path, ops: list[Op], count: int, most: int | None = None
) -> Iterator[tuple[Crash, Path]]:
    """What power cuts leave of the store that was in `before`, made real one after the other."""
    chosen = set(some(range(sum(1 for _ in crashes(before, ops))), count, most))
    for crash in (crash for at, crash in enumerate(crashes(before, ops)) if at in chosen):
        folder = put_down(crash.tree, before.parent / "crash")
        yield crash, folder
        shutil.rmtree(folder)


def losses(tmp_path: Path, count: int) -> Iterator[str]:
    """Promises that power cuts during the job would break."""
    ops, _ = taped(tmp_path)
    for crash, folder in states(fsops.make_folder(tmp_path / "before"), ops, count):
        for problem in violations(folder, Promised.after(ops, crash.done)):
            yield f"{crash}: {problem}"


def losses_on_the_way_back(tmp_path: Path, cuts: int, count: int) -> Iterator[str]:
    """The same for a second power cut, while the job is done again after a first one."""
    ops, _ = taped(tmp_path)
    for first, folder in states(fsops.make_folder(tmp_path / "empty"), ops, cuts, 60):
        before = Path(shutil.copytree(folder, tmp_path / "again" / "before"))
        found = ("mark", "newest", *(a.id for a in Store(folder).in_order()[-1:]))
        more, _ = tape_of(folder)
        whole = [*ops[: first.done], *[found] * (len(found) > 2), *more]
        start = len(whole) - len(more)
        for second, left in states(before, more, count, 40):
            for problem in violations(left, Promised.after(whole, start + second.done)):
                yield f"{first}, then {second}: {problem}"
        shutil.rmtree(before)


def changed_by_a_kill(tmp_path: Path) -> list[str]:
    """Points where the job, killed and begun again, ends in other bytes than in one go."""
    ops, ids = taped(tmp_path)
    before = fsops.make_folder(tmp_path / "before")
    killed = [c for c in crashes(before, ops, throws=0) if c.cut == "killed"]
    found = []
    for crash in some(killed, 20):
        again = job(Store(put_down(crash.tree, tmp_path / str(crash.done))))
        found += [str(crash)] if again != ids else []
    return found


def unsaid(tmp_path: Path) -> list[str]:
    """Harm to the newest checkpoint after which an older one is used without a word."""
    found = []
    for name, harm in HARM.items():
        folder = tmp_path / name / "checkpoints"
        learn(fsops.make_folder(tmp_path / name), folder, lambda step: None)
        newest = folder / f"step-{SAVES[-1]:06d}.safetensors"
        harm(newest)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            used = checkpoints.latest(folder)
        right = used and checkpoints.step_of(used) == SAVES[-2] and str(newest) in said.getvalue()
        found += [] if right else [name]
    return found


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARM: dict[str, Callable[[Path], object]] = {
    "flipped": _flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a folder": _into_folder,
    "another's": lambda path: shutil.copy(path.with_stem(f"step-{SAVES[-2]:06d}"), path),
    "no note": lambda path: path.with_suffix(".json").write_bytes(b""),
    "torn note": lambda path: path.with_suffix(".json").write_bytes(b'{"step": 6, "sha'),
    "nested note": lambda path: path.with_suffix(".json").write_bytes(b"[" * 100_000),
    "another's note": lambda path: path.with_suffix(".json").write_bytes(b'{"step": 5}'),
}
