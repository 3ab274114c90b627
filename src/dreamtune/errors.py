"""What can go wrong through no fault of the program, each with its exit code.

    UserError            2   any of these; the command line prints one line and exits with `code`
    ├ Usage              2   a flag, recipe or argument that cannot be right
    ├ SetAside           3   --strict, and some inputs were set aside
    ├ NotFound          10   no such artifact, model, checkpoint or folder
    ├ Locked            11   another process is writing the same thing
    ├ Damaged           12   bytes differ from what was recorded
    ├ Unsafe            13   an input that could run code or escape its folder
    ├ NonFinite         14   NaN or infinity where numbers are needed
    ├ Resources         15   disk, memory or permission ran out
    ├ Network           16   the network, or the right to use it
    ├ WouldOverwrite    17   something of the user's is already there
    └ Interrupted   128 + n  SIGHUP, SIGINT or SIGTERM, the checkpoint saved

Code 1 is an internal error (a bug).
"""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can mend: what happened, why, and what to do about it."""

    code = 2

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what + (f": {why}" if why else "") + (f"; {fix}" if fix else ""))


class Usage(UserError):
    """A flag, recipe key or argument that cannot be right."""


class SetAside(UserError):
    """Inputs were set aside although --strict was asked for."""

    code = 3


class NotFound(UserError):
    """There is no such artifact, model, checkpoint or folder."""

    code = 10


class Locked(UserError):
    """Another process is writing the same thing."""

    code = 11


class Damaged(UserError):
    """Bytes differ from what was recorded, or a file is not what it says."""

    code = 12


class Unsafe(UserError):
    """An input that could run code or reach outside its folder."""

    code = 13


class NonFinite(UserError):
    """NaN or infinity where numbers are needed."""

    code = 14


class Resources(UserError):
    """Disk space, memory or permission ran out."""

    code = 15


class Network(UserError):
    """The network failed, or refused."""

    code = 16


class WouldOverwrite(UserError):
    """Something of the user's is already there."""

    code = 17


class Interrupted(UserError):
    """A signal ended the work, after what was done so far was saved."""

    def __init__(self, signal: int, what: str, *, fix: str = "") -> None:
        super().__init__(what, fix=fix)
        self.code = 128 + signal


def suggest(word: str, names: Iterable[str]) -> str:
    """`did you mean 'lora'?` for the nearest of `names`, or an empty string."""
    from difflib import get_close_matches

    near = get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""
