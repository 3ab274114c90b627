"""What was pointed at, a folder, kohya's folders or a dataset TOML, as photos with their words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .. import recipe
from ..errors import NotFound, Usage
from . import kohya, sidecars, walk
from .captions import Concept
from .kohya import Subset
from .walk import Found


@dataclass
class Intake:
    """found: all files; subsets: of the photos that are in kohya's folders; captions: as found."""

    name: str
    found: Found
    subsets: dict[str, Subset] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def class_word(self) -> str | None:
        """The class that most of kohya's folders name, if there are any."""
        words = Counter(kohya.split(subset.words)[1] for subset in self.subsets.values())
        return next((word for word, _ in words.most_common() if word), None)

    def concept(self, photo: str, concept: Concept) -> Concept:
        """A photo's own concept: its folder may name another class."""
        subset = self.subsets.get(photo)
        word = kohya.split(subset.words)[1] if subset else ""
        return Concept(concept.identifier, word or concept.class_word, concept.kind)

    def weight(self, photo: str) -> float:
        """How often a photo is shown, relative to the least shown one."""
        if photo not in self.subsets:
            return 1.0
        return self.subsets[photo].repeats / min(s.repeats for s in self.subsets.values())


def take(source: Path, identifier: str, ending: str | None, follow_links: bool) -> Intake:
    """Find photos and read captions. NotFound without a folder, Usage without photos in it."""
    if not source.exists():
        raise NotFound(f"no folder {source}")
    if source.is_dir():
        intake = _folder(source, ending, follow_links)
    elif source.suffix.lower() == ".toml":
        intake = _toml(source, ending, follow_links)
    else:
        raise Usage(f"{source} is a file", fix="give the folder that your photos are in")
    if not intake.found.photos:
        refused = len(intake.found.refused)
        why = f"none of {refused} files can be used" if refused else "there is none in it"
        first = intake.found.refused[0].detail if refused else ""
        raise Usage(f"no photos in {source}", why=f"{why}: {first}" if first else why)
    _use_identifier(intake, identifier)
    return intake


def _folder(folder: Path, ending: str | None, follow_links: bool) -> Intake:
    if (folder / "manifest.json").is_file():
        raise Usage(f"{folder} is an artifact, not a folder of photos", fix="give your own photos")
    if (folder / "journal.jsonl").is_file():
        raise Usage(f"{folder} is a store, not a folder of photos", fix="give your own photos")
    found = walk.find(folder, follow_links)
    name = folder.resolve().name
    subsets = kohya.by_folder(found.photos, name)
    captions = sidecars.read(found.photos, found.texts, found.paths, ending)
    return Intake(name, found, subsets, captions)


def _toml(file: Path, ending: str | None, follow_links: bool) -> Intake:
    """Each image folder under its own prefix, so that equal names stay apart."""
    listed, remarks = kohya.sources(recipe.load(file), file.parent)
    intake = Intake(file.stem, Found(), remarks=remarks)
    for number, source in enumerate(listed):
        if not source.folder.is_dir():
            raise NotFound(f"no folder {source.folder}", why=f"{file.name} names it")
        found = walk.find(source.folder, follow_links)
        own = ending or source.subset.ending
        captions = sidecars.read(found.photos, found.texts, found.paths, own)
        prefix = f"{number}-{source.folder.name}/"
        _merge(intake, found, captions, source.subset, prefix)
    return intake


def _merge(
    intake: Intake, found: Found, captions: dict[str, str], subset: Subset, prefix: str
) -> None:
    for kind in ("photos", "texts", "ignored"):
        getattr(intake.found, kind).extend(prefix + name for name in getattr(found, kind))
    intake.found.refused += [walk.Refused(prefix + r.name, r.code, r.detail) for r in found.refused]
    intake.found.paths |= {prefix + name: path for name, path in found.paths.items()}
    intake.captions |= {prefix + name: caption for name, caption in captions.items()}
    intake.subsets |= {prefix + name: subset for name in found.photos}


def _use_identifier(intake: Intake, identifier: str) -> None:
    """The rare word that kohya's folders name gives way to ours, in captions too."""
    rare = {kohya.split(subset.words)[0] for subset in intake.subsets.values()} - {"", identifier}
    for word in sorted(rare):
        intake.remarks.append(f"{word!r} in captions becomes {identifier}")
    for photo, caption in intake.captions.items():
        words = [identifier if word in rare else word for word in caption.split(" ")]
        intake.captions[photo] = " ".join(words)
