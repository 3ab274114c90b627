"""Class images: what keeps "dog" meaning all dogs while yours is learned (prior preservation,
Ruiz et al., arXiv:2208.12242, section 3.3). An artifact of kind "class": made by the base on first
use, found again by what made them, or taken from a folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import bases, console, devices, fsops
from dreamtune.artifacts import Artifact
from dreamtune.bases.overrides import Overrides, override
from dreamtune.errors import NonFinite, Usage
from dreamtune.names import slug
from dreamtune.settings import Train
from dreamtune.store import Draft, Store

if TYPE_CHECKING:
    from PIL import Image

    from dreamtune.bases import Found
    from dreamtune.families import Family

VERSION = 1  # of what a class artifact holds and how it is made
STEPS, GUIDANCE = 25, 5.0
CHUNK = 4  # pictures at once, always the same ones, so that a resumed set has the same bytes
RETRIES = 3  # other seeds for a picture that came out blank
SECONDS, MEMORY = 10.0, 3 * 2**29  # what decoding one given file may take


def prompt_of(train: Train, class_word: str) -> str:
    """The caption that names only the class."""
    return train.class_prompt.replace("{class}", class_word)


def ensure(store: Store, train: Train, class_word: str, count: int) -> Artifact:
    """Class images for one class word: those that were given, or made by the base."""
    given = train.class_images
    if given is None:
        return Making(store, train, class_word, count).artifact()
    if Path(given).is_dir():
        return from_folder(store, Path(given), prompt_of(train, class_word))
    return store.resolve(given, "class")


@dataclass(frozen=True)
class Making:
    """Class images that the base makes of a class word."""

    store: Store
    train: Train
    class_word: str
    count: int

    @functools.cached_property
    def base(self) -> Found:
        return override(bases.find(self.train.base), Overrides.of(self.train))

    @property
    def recipe(self) -> dict[str, Any]:
        """All that decides each picture; the first pictures of a larger set are the same."""
        device = devices.choose(self.train.device)
        return {
            "prompt": prompt_of(self.train, self.class_word),
            "base_hash": self.base.fingerprint(),
            "steps": STEPS,
            "guidance": GUIDANCE,
            "resolution": self.train.resolution,
            "device": device,
            "precision": devices.choose_precision(self.train.precision, device),
        }

    def artifact(self) -> Artifact:
        """Found, or made; an interrupted making goes on where it was."""
        recipe = {**self.recipe, "count": self.count}
        key = self.store.key("class", VERSION, recipe, [])
        done = self.store.find(key)
        if done:
            return done
        with self.store.draft("class", slug(self.class_word), key, recipe, [], keep=True) as draft:
            self._copy(draft)
            self._make(draft)
            files = [f"images/{i:04d}.png" for i in range(self.count)]
            _describe(draft, files, recipe["prompt"])
            return draft.commit({})

    def _copy(self, draft: Draft) -> None:
        """Take over the pictures of another set that differs in its count only."""
        images = fsops.make_folder(draft.path / "images")
        for other in self.store.list("class"):
            recipe = {k: v for k, v in other.recipe.items() if k != "count"}
            if recipe != self.recipe or other.verify(deep=True):
                continue
            whole = min(other.recipe["count"] // CHUNK * CHUNK, self.count)
            for i in range(whole):
                if not (images / f"{i:04d}.png").exists():
                    data = (other.path / "images" / f"{i:04d}.png").read_bytes()
                    fsops.write_bytes(images / f"{i:04d}.png", data)

    def _make(self, draft: Draft) -> None:
        """Make what is missing."""
        images = draft.path / "images"
        wanted = [images / f"{i:04d}.png" for i in range(self.count)]
        chunks = [range(i, min(i + CHUNK, self.count)) for i in range(0, self.count, CHUNK)]
        missing = [c for c in chunks if not all(wanted[i].exists() for i in c)]
        if not missing:
            return
        console.say(f"making {self.count} class images, {self.recipe['prompt']!r}, once")
        family = devices.load(self.base, self.recipe["device"], self.recipe["precision"])
        with console.progress(self.count, "class images") as bar:
            bar.advance(self.count - sum(len(c) for c in missing))
            for chunk in missing:
                for i, picture in zip(chunk, self._pictures(family, chunk), strict=True):
                    fsops.write_bytes(wanted[i], _png(picture))
                    bar.advance()

    def _pictures(self, family: Family, chunk: Sequence[int]) -> Iterator[Image.Image]:
        """The pictures of a chunk; where one is blank, each from its next seed that is not."""
        try:
            yield from list(self._sampled(family, chunk))
        except NonFinite:
            for i in chunk:
                yield self._first_good(family, i)

    def _first_good(self, family: Family, i: int) -> Image.Image:
        for retry in range(RETRIES):
            with contextlib.suppress(NonFinite):
                return next(self._sampled(family, [i + retry * self.count]))
        raise NonFinite(
            f"the base makes only blank pictures of {self.recipe['prompt']!r}",
            fix="give --class-images a folder of your own, or try --precision fp32",
        )

    def _sampled(self, family: Family, seeds: Sequence[int]) -> Iterator[Image.Image]:
        from dreamtune.sampling import Look, pictures

        side = self.train.resolution or family.resolution
        look = Look(steps=STEPS, guidance=GUIDANCE, size=(side, side))
        return pictures(family, self.recipe["prompt"], seeds, look, CHUNK)


def from_folder(store: Store, folder: Path, prompt: str) -> Artifact:
    """Class images of your own. Files that are no usable picture are named and passed over."""
    from dreamtune.data import decode, walk
    from dreamtune.data.photos import Rejected

    found = walk.find(folder)
    paths = [found.paths[name] for name in found.photos]
    recipe = {"prompt": prompt, "files": [fsops.hash_file(path) for path in paths]}
    key = store.key("class", VERSION, recipe, [])
    done = store.find(key)
    if done:
        return done
    with store.draft("class", slug(folder.name), key, recipe, []) as draft:
        images = fsops.make_folder(draft.path / "images")
        files: list[str] = []
        seen = decode.run(_see, paths, workers=1, seconds=SECONDS, memory=MEMORY)
        for path, photo in seen:
            if isinstance(photo, Rejected):
                console.warn(f"{path.name} is no class image: {photo}")
                continue
            suffix, data = photo
            files.append(f"images/{len(files):04d}{suffix}")
            fsops.write_bytes(images / Path(files[-1]).name, data)
        if not files:
            raise Usage(f"no usable picture in {folder}", why="--class-images names it")
        _describe(draft, files, prompt)
        return draft.commit({})


def _see(path: Path) -> tuple[str, bytes]:
    """A file as upright sRGB, ready to be kept. Runs in a worker process."""
    from dreamtune.data.examine import read
    from dreamtune.data.photos import Seeing, see

    return see(read(path), Seeing(min_side=16), path.name).encode()


def _describe(draft: Draft, files: Sequence[str], prompt: str) -> None:
    """samples.jsonl, as a prep artifact has it."""
    from PIL import Image

    lines = []
    for file in files:
        data = (draft.path / file).read_bytes()
        facts = {
            "file": file,
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": Image.open(io.BytesIO(data)).size,
            "caption": prompt,
            "focus": [0.25, 0.25, 0.75, 0.75],
            "weight": 1.0,
        }
        lines.append(json.dumps(facts))
    fsops.write_text(draft.path / "samples.jsonl", "".join(f"{line}\n" for line in lines))


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "png")
    return data.getvalue()
