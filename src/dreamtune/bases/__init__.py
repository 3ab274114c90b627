"""Base models by name: what a name means, where its files are, and what they hold.

A base is named as people have it, and the first that fits counts:

    mini                        bundled
    tiny:sd                     random weights, for trials and tests
    a name of the user's        `dreamtune base add NAME PATH`
    sd15, sdxl, flux-dev …      a short name for a repository of the hub (catalogue.py)
    a path                      a folder in the diffusers layout, or one .safetensors file
    owner/name[@revision]       a repository of the hub

Everything that could be refused about a base is refused here, before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dreamtune.bases import catalogue, hub, names
from dreamtune.bases.folder import Folder
from dreamtune.bases.hub import Remote
from dreamtune.bases.overrides import Overridden
from dreamtune.bases.single import Single
from dreamtune.bases.weights import Stored
from dreamtune.errors import Damaged, NotFound, UserError, WouldOverwrite, suggest

BUNDLED = ("mini",)
ASSETS = Path(__file__).parents[1] / "assets"
TINY = "tiny:"


class Base(Protocol):
    """A base that is here. Parts have the names of the diffusers layout: "unet", "vae" …"""

    @property
    def name(self) -> str: ...  # what outputs call it; never a path
    @property
    def path(self) -> Path: ...
    @property
    def pipeline(self) -> str: ...  # class of its diffusers pipeline
    @property
    def settings(self) -> dict[str, Any]: ...  # what the pipeline is told beside its parts
    @property
    def parts(self) -> dict[str, str]: ...  # part -> class
    def check(self) -> None: ...
    def config(self, part: str) -> dict[str, Any]: ...
    def tensors(self, part: str) -> dict[str, Stored]: ...
    def load(self, part: str, kind: Any, dtype: Any, device: Any = "cpu") -> Any: ...
    def tokenizer(self, part: str, kind: Any) -> Any: ...
    def fingerprint(self, part: str = "") -> str: ...


@dataclass(frozen=True)
class Tiny:
    """Random weights that a family makes itself: no files, so nothing to check or to read."""

    name: str  # "tiny:sd"

    @property
    def family(self) -> str:
        return self.name.removeprefix(TINY)

    def fingerprint(self, part: str = "") -> str:
        return f"{self.name}/{part}"


Found = Base | Tiny | Overridden


def find(text: str) -> Base | Tiny:
    """The base that `text` names, checked. NotFound, Network, Damaged, Unsafe, Usage, …"""
    if text.startswith(TINY):
        return Tiny(text)
    if text in BUNDLED:
        return Folder(text, ASSETS / text)
    if entry := names.named().get(text):
        return _registered(text, Path(entry["path"]), entry.get("sha256", ""))
    if found := remote(text):
        return hub.find(found, text)
    path = Path(text).expanduser()
    if path.exists() or path.is_symlink():
        return at(path)
    if place := names.used_as(text):
        return at(place)
    raise unknown(text)


def remote(text: str) -> Remote | None:
    """The repository of the hub that `text` names; None when it names something else."""
    if text in BUNDLED or text in names.named():
        return None
    if known := catalogue.KNOWN.get(text):
        return Remote(known.repo, known.revision, known.formerly)
    repo, _, revision = text.partition("@")
    here = Path(text).expanduser()
    is_id = hub.ID.fullmatch(repo) and not (here.exists() or here.is_symlink())
    return Remote(repo, revision or None) if is_id else None


def again(name: str, sha256: str) -> Base | Tiny:
    """The base that an adapter was trained on, by what the adapter recorded of it."""
    for place in names.used(sha256):
        if place.exists():
            base = at(place, name)
            if base.fingerprint() == sha256:
                return base
    try:
        return find(name)
    except NotFound as e:
        fix = "say where it is: --base PATH"
        raise NotFound(
            f"the base {name!r} of the adapter is not here", why=e.why, fix=fix
        ) from None


def register(name: str, base: Base, force: bool = False, dry_run: bool = False) -> None:
    """Give a base of the user's a name. WouldOverwrite for a name that means another."""
    names.check(name, {*BUNDLED, *catalogue.KNOWN})
    old, sha256 = names.named().get(name), base.fingerprint()
    if old and old.get("sha256") != sha256 and not force:
        why = f"it is {old['path']}"
        raise WouldOverwrite(f"{name} is another base", why=why, fix="--force replaces it")
    if not dry_run:
        names.add(name, base.path, sha256)


def remember(base: Found) -> None:
    """Note where a base lies that an adapter is trained on, for `again`."""
    if isinstance(base, Overridden):
        base.remember()
        base = base.base
    if not isinstance(base, Tiny) and not base.path.is_relative_to(ASSETS):
        names.remember(base.name, base.path, base.fingerprint())


def named(base: Found) -> dict[str, str]:
    """What a recipe calls a base, and the autoencoder that stands in for its own."""
    vae = base.vae if isinstance(base, Overridden) else None
    return {"base": base.name, **({"vae": vae.name} if vae else {})}


def at(path: Path, name: str = "") -> Base:
    """The base in a folder or file, checked."""
    real = path.resolve()
    if path.is_dir():
        base: Base = Folder(name or real.name, path)
    else:
        base = Single(name or real.stem, path)
    base.check()
    return base


def unknown(text: str) -> UserError:
    """No base has this name."""
    known = [*BUNDLED, *names.named(), *catalogue.KNOWN]
    return NotFound(
        f"no base {text!r}",
        why="it is no path, no hub id owner/name, and on no list",
        fix=suggest(text, known) or "see `dreamtune base list`",
    )


def _registered(name: str, path: Path, sha256: str) -> Base:
    again = f"dreamtune base add {name} PATH"
    if not path.exists():
        raise NotFound(f"{name} is gone", why=f"there is no {path}", fix=f"`{again}`")
    base = at(path, name)
    if base.fingerprint() != sha256:
        fix = f"`{again} --force` takes it as it is now"
        raise Damaged(f"{name} has changed since it was added", why=str(path), fix=fix)
    return base
