"""convert: an adapter to any layout, a model to a folder or to one file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dreamtune import bases, console
from dreamtune.artifacts import Artifact
from dreamtune.bases import Tiny, weights
from dreamtune.bases.folder import INDEX, Folder
from dreamtune.bases.single import Single
from dreamtune.errors import Damaged, NotFound, Usage, WouldOverwrite
from dreamtune.formats import adapters, header, modelspec
from dreamtune.formats.ldm import Blocks
from dreamtune.stages import export, folders, single_files, sources
from dreamtune.stages.models import Changed, Model, Readable, Tuned, Written
from dreamtune.stages.sources import FACTS, Ground, Source
from dreamtune.store import Store

SUFFIX = ".safetensors"


def model_of(store: Store, text: str) -> Folder | Single | Tuned | None:
    """The model that `text` names: a folder, a file, a base or what DreamBooth trained.

    None when it names an adapter. NotFound when it names nothing.
    """
    path = Path(text).expanduser()
    if path.is_dir() and (path / FACTS).is_file():
        return _trained(Artifact.load(path))
    if path.exists():
        return None if _is_adapter(path) else _with_files(bases.at(path))
    try:
        return _trained(store.resolve(text.partition("@")[0], "adapter"))
    except NotFound as no_adapter:
        try:
            return _with_files(bases.find(text))
        except NotFound:
            raise no_adapter from None


def _is_adapter(path: Path) -> bool:
    if path.is_dir():
        return not (path / INDEX).is_file()
    shapes = {key: t.shape for key, t in header.read_header(path).tensors.items()}
    try:
        adapters.layout_of(shapes)
    except Damaged:
        return False
    return True


def _with_files(base: bases.Base | Tiny) -> Folder | Single:
    if not isinstance(base, Folder | Single):
        raise Usage(f"{base.name} has no files", fix="name a base that has")
    return base


def _trained(artifact: Artifact) -> Tuned | None:
    """The base with the parts that an artifact of whole parts has in their place."""
    if list(artifact.path.glob("*.safetensors")):
        return None
    artifact.check(deep=True)
    facts = artifact.read_json(FACTS)
    base = _with_files(sources.base_of(facts))
    if said := facts.get("overrides", {}).keys() - {"base_hash", "vae_hash"}:
        told = ", ".join(sorted(said))
        console.warn(f"{artifact.label} was trained with another {told} than its base's files say")
    own: dict[str, dict[str, Readable]] = {}
    for file in sorted(artifact.path.glob("*/*.safetensors")):
        found = weights.stored(file).items()
        own[file.parent.name] = {weights.current(n): Changed(t, lambda t: t) for n, t in found}
    return Tuned(base, own)


def adapter_of(store: Store, text: str, base: str | None = None) -> tuple[Source, Ground | None]:
    """The adapter that `text` names, and the base where one is named or a DoRA needs its own.

    Usage when they do not fit together.
    """
    ground = sources.ground(bases.find(base)) if base else None
    source = sources.find(store, text, ground.blocks if ground else Blocks())
    if ground is None and source.is_dora and source.facts:
        ground = sources.ground(sources.base_of(source.facts))
    if ground:
        ground.check(source)
    return source, ground


def check_file(out: Path, force: bool) -> None:
    """Before any work: as `check_out`, and Usage when `out` is to be a folder."""
    if out.suffix.lower() != SUFFIX:
        raise Usage(f"--out {out} must end in {SUFFIX}")
    check_out(out, force)


def deliver(store: Store, artifact: Artifact, out: Path) -> list[Path]:
    """Write what was trained as a file for a user interface: kohya's layout, or a whole model."""
    console.say(f"{artifact.label} is saved")
    if model := model_of(store, str(artifact.path)):
        return write_model(model, out, "keep").paths
    source, ground = adapter_of(store, str(artifact.path))
    paths = export.write(source, export.Wish(out, force=True), ground)
    console.say(f"wrote {', '.join(map(str, paths))}")
    return paths


def check_out(out: Path, force: bool) -> None:
    """Before any work: WouldOverwrite, NotFound or Usage when `out` cannot be written."""
    if out.suffix.lower() == SUFFIX:
        if not out.parent.is_dir():
            raise NotFound(f"there is no folder {out.parent} for --out")
        if out.exists() and not force:
            raise WouldOverwrite(f"{out} exists", fix="give another --out, or --force")
    elif out.exists() and not out.is_dir():
        raise Usage(f"--out {out} is a file that does not end in .safetensors")
    elif out.is_dir() and any(out.iterdir()):
        if not force:
            raise WouldOverwrite(f"{out} is there", fix="give another --out, or --force")
        if not (out / INDEX).is_file():
            raise Usage(f"{out} is a folder with other things in it", fix="give another --out")


def write_model(model: Model, out: Path, precision: str, merged_from: str = "") -> Written:
    """Write a model as one file, with what it says of itself, or as a folder."""
    if out.suffix.lower() != SUFFIX:
        return folders.write(model, out, precision)
    said = partial(describe, model, title=out.stem, merged_from=merged_from)
    return single_files.write(model, out, precision, said)


def describe(model: Model, body: str, *, title: str, merged_from: str = "") -> dict[str, str]:
    """The metadata of one file: what the file it came from says, ModelSpec's keys, the date."""
    own = model.base if isinstance(model, Tuned) else model
    kept = dict(header.read_header(own.path).metadata) if isinstance(own, Single) else {}
    base = modelspec.BASES[single_files.spec(model)]
    said = modelspec.modelspec(base, "", body, title=title, merged_from=merged_from)
    kept = {k: v for k, v in kept.items() if k != "modelspec.hash_sha256"}
    said |= {"format": "pt", "modelspec.date": export.date()}
    return said | kept if not merged_from else kept | said
