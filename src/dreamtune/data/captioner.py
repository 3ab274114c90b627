"""An outside captioner: any program that prints a caption for the picture file it is given."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import NotFound, Usage
from . import texts

SECONDS = 300.0  # for one picture; captioners load their model anew each time
TOGETHER = 2


def describe(command: str, pictures: Mapping[str, Path]) -> dict[str, str]:
    """Photo -> what the program printed for its picture, on one line.

    The command is split as a shell would, but no shell sees it, and the picture's path is its
    last argument. NotFound without such a program, Usage when it fails.
    """
    words = program(command)

    def ask(photo: str) -> str:
        return _run([*words, str(pictures[photo].resolve())], photo)

    with ThreadPoolExecutor(TOGETHER) as pool:
        return dict(zip(pictures, pool.map(ask, pictures), strict=True))


def program(command: str) -> list[str]:
    """The command's words, its program found."""
    try:
        words = shlex.split(command)
    except ValueError as e:
        raise Usage(f"--captioner {command!r} cannot be read", why=str(e)) from None
    if not words or shutil.which(words[0]) is None:
        raise NotFound(f"no program {words[0] if words else ''!r} for --captioner")
    return words


def _run(words: list[str], photo: str) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Usage(f"the captioner took more than {SECONDS:g} seconds for {photo}") from None
    except OSError as e:
        raise Usage("the captioner does not start", why=e.strerror or "") from None
    if done.returncode:
        said = texts.clean(texts.decode(done.stderr[-300:]) or "")
        raise Usage(f"the captioner failed on {photo} with exit code {done.returncode}", why=said)
    return texts.clean(texts.decode(done.stdout) or "")
