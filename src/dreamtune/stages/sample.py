"""sample: prompts and adapters to a samples artifact."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamtune import __version__, bases, console, fsops
from dreamtune.artifacts import Artifact, Draft, Store, slug
from dreamtune.bases.overrides import Overrides, override, recorded
from dreamtune.errors import Usage
from dreamtune.settings import Sample
from dreamtune.stages.adapters import Adapter, put_in

if TYPE_CHECKING:
    from PIL import Image

    from dreamtune.bases import Found
    from dreamtune.families import Family
    from dreamtune.sampling import Look

VERSION = 1  # of what a samples artifact holds and how it is made


@dataclass(frozen=True)
class Run:
    """One call of `sample`."""

    store: Store
    prompts: Sequence[str]
    adapters: Sequence[Adapter]
    sample: Sample

    @functools.cached_property
    def base(self) -> Found:
        """The base asked for, else the adapters', else the bundled one."""
        said = Overrides.of(self.sample)
        trained_on = {a.facts["base_hash"]: a.facts for a in self.adapters}
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
        return {
            "prompts": list(self.prompts),
            "adapters": [a.record() for a in self.adapters],
            "base": self.base.name,
            "base_hash": self.base.fingerprint(),
            "sample": {**dataclasses.asdict(self.sample), **bases.named(self.base)},
        }


def run(ask: Run) -> Artifact:
    """Make the pictures, or find that they were made before."""
    parents = [a.artifact.id for a in ask.adapters]
    key = ask.store.key("samples", VERSION, ask.recipe, parents)
    done = ask.store.find(key)
    if done:
        console.say(f"{done.label} is up to date")
        return ask.store.reuse(done)
    for adapter in ask.adapters:
        adapter.artifact.check(deep=True)
        if adapter.facts["base_hash"] != ask.recipe["base_hash"]:
            console.warn(
                f"{adapter.artifact.label} was trained on other weights than {ask.base.name}"
            )
    name = ask.adapters[0].artifact.name if ask.adapters else slug(ask.base.name)
    with ask.store.draft("samples", name, key, ask.recipe, parents) as draft:
        _fill(ask, draft)
        return draft.commit({})


def _fill(ask: Run, draft: Draft) -> None:
    """Write pictures, their sidecar and the grid into the draft."""
    from dreamtune import devices
    from dreamtune.sampling import Look, pictures

    sample = ask.sample
    device = devices.choose(sample.device)
    precision = devices.choose_precision(sample.precision, device)
    family = devices.load(ask.base, device, precision)
    for adapter in ask.adapters:
        put_in(family, adapter)
    look = Look(sample.steps, sample.guidance, _size(sample.size, family), sample.negative)
    seeds = range(sample.seed, sample.seed + sample.count)
    rows, lines = [], []
    with console.progress(len(ask.prompts) * sample.count, "sampling") as bar:
        for i, prompt in enumerate(ask.prompts):
            row = []
            images = pictures(family, prompt, seeds, look, sample.batch)
            for seed, image in zip(seeds, images, strict=True):
                file = f"{i:03d}-{seed}.png"
                facts = _facts(ask, family, prompt, seed, look)
                fsops.write_bytes(draft.path / file, _png(image, facts))
                lines.append({"file": file, "prompt": prompt, "seed": seed, **facts["exact"]})
                row.append(image)
                bar.advance()
            rows.append(row)
    fsops.write_json(draft.path / "samples.json", lines)
    fsops.write_bytes(draft.path / "grid.png", _png(grid(rows), None))


def _size(asked: str | None, family: Family) -> tuple[int, int]:
    """(width, height) px; Usage when the base can not make it."""
    parts = [int(n) for n in (asked or str(family.resolution)).split("x")]
    width, height = parts[0], parts[-1]
    if not width or not height or width % family.multiple or height % family.multiple:
        raise Usage(
            f"size {asked} does not fit the base {family.base}",
            why=f"width and height must be multiples of {family.multiple}",
        )
    return width, height


# Files.


def _facts(ask: Run, family: Family, prompt: str, seed: int, look: Look) -> dict[str, Any]:
    """What a picture says of itself: A1111's text, and exactly, for making it again.

    The text has the word that the first tokenizer binds, since A1111 reads brackets as weights.
    """
    from dreamtune.formats import infotext

    sample = ask.sample
    shown = {
        "Steps": sample.steps,
        "Sampler": family.sampler,
        "CFG scale": sample.guidance,
        "Seed": seed,
        "Size": f"{look.size[0]}x{look.size[1]}",
        "Model hash": ask.recipe["base_hash"][:10],
        "Model": ask.base.name,
        "Version": f"dreamtune {__version__}",
    }
    exact = {
        "negative": sample.negative,
        "steps": sample.steps,
        "guidance": sample.guidance,
        "size": [*look.size],
        "base": ask.base.name,
        "base_hash": ask.recipe["base_hash"],
        "adapters": [a.record() for a in ask.adapters],
    }
    return {
        "text": infotext.dump(family.text[0].prompt(prompt), sample.negative, shown),
        "exact": exact,
    }


def _png(image: Image.Image, facts: dict[str, Any] | None) -> bytes:
    """A PNG file, with A1111's `parameters` when there are facts."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if facts:
        info.add_text("parameters", facts["text"])
    data = io.BytesIO()
    image.save(data, "png", pnginfo=info)
    return data.getvalue()


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """All pictures in one: a row a prompt; a single prompt's are laid out in a square."""
    from PIL import Image

    if len(rows) == 1:
        across = math.ceil(math.sqrt(len(rows[0])))
        rows = [rows[0][i : i + across] for i in range(0, len(rows[0]), across)]
    width, height = rows[0][0].size
    gap = max(2, width // 64)
    size = len(rows[0]) * (width + gap) - gap, len(rows) * (height + gap) - gap
    sheet = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * (width + gap), y * (height + gap)))
    return sheet
