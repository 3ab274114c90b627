"""sample: prompts and adapters to a samples artifact."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamtune import bases, console, fsops
from dreamtune.artifacts import Artifact
from dreamtune.bases.overrides import Overrides, override, recorded
from dreamtune.errors import Usage
from dreamtune.formats import prompts
from dreamtune.names import slug
from dreamtune.settings import IDENTIFIER, Sample
from dreamtune.stages.adapters import Adapter, choose, record
from dreamtune.stages.axes import Axis
from dreamtune.stages.lines import OWN, Line
from dreamtune.stages.looks import Beginning, looks_of
from dreamtune.stages.scenes import Scene, check_negatives, plan
from dreamtune.stages.studio import Studio
from dreamtune.stages.writer import Writer
from dreamtune.store import Draft, Store

if TYPE_CHECKING:
    from PIL import Image

    from dreamtune.bases import Found
    from dreamtune.stages.grid import Block

VERSION = 2  # of what a samples artifact holds and how it is made


@dataclass(frozen=True)
class Run:
    """One call of `sample`. refs: adapters as --with names them; none means those that fit."""

    store: Store
    lines: Sequence[Line]
    refs: Sequence[str]
    sample: Sample
    beginning: Beginning | None = None

    @functools.cached_property
    def scenes(self) -> list[Scene]:
        """Every picture that is asked for. Usage, NotFound for what cannot be."""
        bare = [
            prompts.strengths(x.prompt, set(IDENTIFIER.findall(x.prompt)))[0] for x in self.lines
        ]
        scenes = plan(self.lines, choose(self.store, bare, self.refs), *self.axes)
        check_negatives(scenes)
        return scenes

    @functools.cached_property
    def axes(self) -> tuple[Axis, Axis]:
        """Across and down."""
        across, down = (Axis.read(t, self.sample) for t in (self.sample.grid_x, self.sample.grid_y))
        if across.name and across.name == down.name:
            raise Usage(f"both sides of the grid are {across.name}")
        return across, down

    @functools.cached_property
    def adapters(self) -> list[Adapter]:
        """All that are used, each once."""
        found = (adapter for scene in self.scenes for adapter in scene.adapters)
        return list({adapter.id: adapter for adapter in found}.values())

    @functools.cached_property
    def base(self) -> Found:
        """The base asked for, else the adapters', else the bundled one."""
        said = Overrides.of(self.sample)
        trained_on = {a.facts["base_hash"]: a.facts for a in self.adapters if a.facts}
        if self.sample.base or not trained_on:
            base = bases.find(self.sample.base or bases.BUNDLED[0])
            records = [facts.get("overrides", {}) for facts in trained_on.values()]
            same = (r for r in records if r.get("base_hash") == base.fingerprint())
            return override(base, said.over(recorded(next(same, {}))))
        if len(trained_on) > 1:
            names = ", ".join(facts["base"] for facts in trained_on.values())
            raise Usage(
                f"the adapters were trained on different bases: {names}",
                why="or on one of which different things were said",
                fix="say which to use: --base",
            )
        ((sha256, facts),) = trained_on.items()
        record = facts.get("overrides", {})
        base = bases.again(facts["base"], record.get("base_hash", sha256))
        return override(base, said.over(recorded(record)))

    @functools.cached_property
    def recipe(self) -> dict[str, Any]:
        """All that decides the result."""
        dressed = {scene.line: scene.adapters for scene in self.scenes}
        common = dataclasses.asdict(self.sample)
        return {
            "lines": [
                {
                    "prompt": line.prompt,
                    "settings": {name: getattr(line.sample, name) for name in OWN},
                    "adapters": [record(adapter) for adapter in dressed[i]],
                }
                for i, line in enumerate(self.lines)
            ],
            "start": self.beginning.record() if self.beginning else None,
            "base": self.base.name,
            "base_hash": self.base.fingerprint(),
            "sample": {k: v for k, v in common.items() if k not in OWN} | bases.named(self.base),
        }


class Session:
    """What calls of `sample` in one process can share: the base in memory."""

    def __init__(self, stays: bool = False) -> None:
        self.stays = stays
        self._studio: Studio | None = None
        self._key: tuple[str, ...] = ()
        self._sound: set[tuple[str, str]] = set()

    def studio(self, ask: Run) -> Studio:
        """The base of a run, loaded unless it is there."""
        key = (ask.recipe["base_hash"], ask.sample.device, ask.sample.precision)
        if self._studio is None or key != self._key:
            self._studio = None  # before another one takes memory
            several = self.stays or len({scene.dress for scene in ask.scenes}) > 1
            self._studio = Studio(ask.base, ask.sample.device, ask.sample.precision, several)
            self._key = key
        return self._studio

    def check(self, adapter: Adapter, ask: Run) -> None:
        """Whether an adapter can be put into the base, once."""
        both = adapter.id, ask.recipe["base_hash"]
        if both not in self._sound:
            adapter.check(ask.base)
            self._sound.add(both)


def run(ask: Run, session: Session | None = None) -> Artifact:
    """Make the pictures, or find that they were made before."""
    session = session or Session()
    parents = [parent for adapter in ask.adapters for parent in adapter.parents]
    key = ask.store.key("samples", VERSION, ask.recipe, parents)
    done = ask.store.find(key)
    if done:
        console.say(f"{done.label} is up to date")
        return ask.store.reuse(done)
    for adapter in ask.adapters:
        session.check(adapter, ask)
        if adapter.facts and adapter.facts["base_hash"] != ask.recipe["base_hash"]:
            console.warn(f"{adapter.label} was trained on other weights than {ask.base.name}")
    name = ask.adapters[0].name if ask.adapters else ask.base.name
    name = name if parents else slug(name)  # an artifact's is a folder's already
    with ask.store.draft("samples", name, key, ask.recipe, parents) as draft:
        start = time.monotonic()
        studio = session.studio(ask)
        loaded = time.monotonic()
        _fill(ask, draft, studio)
        seconds = {"load": loaded - start, "pictures": time.monotonic() - loaded}
        return draft.commit({"seconds": {k: round(v, 3) for k, v in seconds.items()}})


def _fill(ask: Run, draft: Draft, studio: Studio) -> None:
    """Pictures, their sidecar and the grid."""
    from dreamtune.sampling import Shot
    from dreamtune.stages import facts
    from dreamtune.stages.grid import sheet

    looks = looks_of(ask.scenes, studio.family, ask.beginning)
    base = ask.recipe["base"], ask.recipe["base_hash"]
    with Writer() as writer, console.progress(len(ask.scenes), "sampling") as bar:
        for together in _alike(ask.scenes):
            painter = studio.painter(together[0].adapters)
            shots = [Shot(scene.words, scene.seed, looks[scene.file]) for scene in together]
            scene_of = {id(shot): scene for shot, scene in zip(shots, together, strict=True)}
            for shot, image in painter.paint(shots, ask.sample.batch):
                scene = scene_of[id(shot)]
                text = facts.text(scene, shot.look, studio.family, *base)
                writer.do(functools.partial(_write, draft, scene.file, image, text))
                bar.advance()
    start = ask.recipe["start"]
    lines = [facts.exact(scene, looks[scene.file], *base, start) for scene in ask.scenes]
    fsops.write_json(draft.path / "samples.json", lines)
    _write(draft, "grid.png", sheet(_blocks(ask, draft)))


def _alike(scenes: Sequence[Scene]) -> list[list[Scene]]:
    """Scenes by the adapters that they need, in the order in which these are first needed."""
    groups: dict[object, list[Scene]] = {}
    for scene in scenes:
        groups.setdefault(scene.dress, []).append(scene)
    return list(groups.values())


# Files.


def _write(draft: Draft, file: str, image: Image.Image, text: str = "") -> None:
    """A PNG file, with A1111's `parameters` when there is a text."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if text:
        info.add_text("parameters", text)
    data = io.BytesIO()
    image.save(data, "png", pnginfo=info)
    fsops.put(draft.path / file, data.getvalue())


def _blocks(ask: Run, draft: Draft) -> list[Block]:
    """The sheet: rows of prompts, or a grid for each prompt and seed."""
    from dreamtune.stages.grid import Block, square

    by_line = [[*some] for _, some in itertools.groupby(ask.scenes, key=lambda scene: scene.line)]
    across, down = ask.axes
    if not (across.name or down.name):
        rows = [[draft.path / scene.file for scene in scenes] for scenes in by_line]
        return [square(rows[0])] if len(rows) == 1 else [Block(rows)]
    blocks = []
    for scenes in by_line:
        size = len(across.values) * len(down.values)
        for first in range(0, len(scenes), size):
            files = [draft.path / scene.file for scene in scenes[first : first + size]]
            width = len(across.values)
            rows = [files[i : i + width] for i in range(0, size, width)]
            title = scenes[0].prompt if len(by_line) > 1 else ""
            blocks.append(Block(rows, title, across.labels, down.labels))
    return blocks
