"""A large file of the hub into its cache; what arrived stays, and the next attempt goes on there.

huggingface_hub keeps whole files only: since 2.x each download has a temporary file of its own, and
a UNet of 10 GB that breaks off at 9 begins anew. The cache keeps a file under its ETag, which for
weights is their SHA-256, so that one put there is found by every library that uses the cache.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from dreamtune import console, fsops
from dreamtune.errors import Network

LARGE = 2**24  # bytes; smaller files are left to the library
CHUNK = 2**20  # bytes
ATTEMPTS = 5  # in a row without a byte
WAIT = 2.0  # s between them


def into_cache(repo: str, file: str, commit: str) -> None:
    """Put one file of a repository under its ETag in the cache, if it is not there yet.

    Errors of the library and of its HTTP client are passed on, and Network for a file that arrived
    otherwise than it was announced.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    url = hf_hub_url(repo, file, revision=commit)
    said = get_hf_file_metadata(url)
    folder = repo_folder_name(repo_id=repo, repo_type="model")
    blob = Path(constants.HF_HUB_CACHE) / folder / "blobs" / str(said.etag)
    if blob.exists() or (said.size or 0) < LARGE:
        return
    fsops.make_folder(blob.parent)
    partial = blob.with_name(f"{blob.name}.dreamtune.incomplete")
    with fsops.lock(blob.with_name(f"{blob.name}.dreamtune.lock"), file, wait=True):
        if not blob.exists():
            _complete(url, partial, int(said.size or 0), file)
            _check(partial, blob.name, f"{repo}/{file}")
            fsops.rename(partial, blob)


def client_error() -> type[Exception]:
    """What the library's HTTP client raises, of whichever release."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _complete(url: str, partial: Path, size: int, label: str) -> None:
    """Download from where `partial` ends; a broken connection is tried again while bytes come."""
    from huggingface_hub.errors import HfHubHTTPError

    failures, have = 0, _size(partial)
    with console.progress(size // CHUNK, f"{label}, MiB") as bar:
        bar.advance(have // CHUNK)
        while have < size:
            try:
                fsops.grow(partial, _rest(url, have, bar))
            except HfHubHTTPError:
                raise
            except client_error():
                failures = failures + 1 if _size(partial) == have else 1
                if failures == ATTEMPTS:
                    raise
                time.sleep(WAIT)
            have = _size(partial)


def _rest(url: str, start: int, bar: console.Progress) -> Iterator[bytes]:
    """The bytes from `start` on; where a server knows no ranges, those before are passed over."""
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        hf_raise_for_status(response)
        skip = start if response.status_code != 206 else 0
        for piece in response.iter_bytes(CHUNK):
            yield piece[min(skip, len(piece)) :]
            skip = max(0, skip - len(piece))
            bar.advance(0 if skip else 1)


def _check(partial: Path, etag: str, name: str) -> None:
    """Its hash is the one that it is known by; otherwise it goes."""
    if re.fullmatch(r"[0-9a-f]{64}", etag) and fsops.hash_file(partial) != etag:
        fsops.remove(partial)
        fix = "run the same command again"
        raise Network(f"{name} did not arrive as it was sent", why="its hash differs", fix=fix)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
