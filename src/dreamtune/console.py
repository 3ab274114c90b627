"""Where words go: results and JSON on stdout, everything else on stderr.

User text (file names, captions, model names) is printed with control characters made visible, so
nothing that a file holds can move the cursor or colour the terminal. rich is imported only for a
live progress bar on a terminal.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO, cast

from . import processes

_quiet = False

# C0 and C1 controls except tab and newline, DEL, and the characters that reorder text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def open_streams() -> None:
    """Let streams that are closed from outside go nowhere: else the next file that is opened would
    get their numbers, and with them what libraries print.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def quiet(on: bool = True) -> None:
    """Keep only results, warnings and errors."""
    global _quiet
    _quiet = on


def clean(text: str) -> str:
    """`text` with control characters written as escapes, as in '\\x1b[31m'."""
    return _CONTROL.sub(lambda m: m.group().encode("unicode_escape").decode(), text)


def out(text: object) -> None:
    """A result: one line on stdout, as it is; an undecodable file name keeps its bytes."""
    if not processes.first():
        return
    try:
        _write(sys.stdout, str(text))
    except UnicodeEncodeError:
        sys.stdout.buffer.write(os.fsencode(str(text)) + b"\n")
        sys.stdout.flush()


def json(obj: Any) -> None:
    """A result as JSON on stdout, pure ASCII."""
    from json import dumps

    out(dumps(obj, indent=2, allow_nan=False))


def say(text: str) -> None:
    """What happened, on stderr."""
    if not _quiet and processes.first():
        _write(sys.stderr, clean(text))


def hint(text: str) -> None:
    """What to do next, on stderr."""
    say(f"→ {text}")


def warn(text: str) -> None:
    """Something is not as it should be, and work goes on; on stderr, also when quiet."""
    if processes.first():
        _write(sys.stderr, clean(f"warning: {text}"))


def error(text: str) -> None:
    """Why work stopped; on stderr, also when quiet."""
    who = "" if processes.first() else f"process {processes.rank()}: "
    _write(sys.stderr, clean(f"error: {who}{text}"))


def interject(text: str) -> None:
    """Talk from a signal handler, which may have come in the middle of other talk."""
    if not _quiet and processes.first():
        with contextlib.suppress(OSError):
            os.write(2, f"{clean(text)}\n".encode())


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows in aligned columns on stderr."""
    cells = [list(columns), *[[clean(str(c)).replace("\n", " ") for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    say("\n".join([title, *[line.rstrip() for line in lines]]))


class Progress:
    """Counts work; `advance(n, loss=0.12)` shows the count, the fields and the time left."""

    def __init__(self, total: int, label: str, done: int = 0, every: float = 30.0) -> None:
        """`done`: what was there before, and says nothing of the speed."""
        self.total, self.label, self.every = total, label, every
        self.done = self.before = done
        self.start = self.spoke = time.monotonic()

    def advance(self, n: int = 1, **fields: Any) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.spoke >= self.every:
            self.spoke = now
            say(f"{self.label} {self.done}/{self.total}{_words(fields)}, {self._left(now)} left")

    def _left(self, now: float) -> str:
        seconds = (now - self.start) / max(self.done - self.before, 1) * (self.total - self.done)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes}:{seconds:02d}"


class _Unread:
    """A stream that a terminal which has closed does not break."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self.stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Bar(Progress):
    """The same as a live bar on a terminal."""

    def __init__(self, total: int, label: str, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        super().__init__(total, label, done)
        text = TextColumn("{task.description}", markup=False)
        fields = TextColumn("{task.fields[words]}", markup=False)
        self.rich = Rich(
            text,
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            fields,
            console=Console(file=cast(TextIO, _Unread(sys.stderr))),
            transient=True,
        )
        self.task = self.rich.add_task(clean(label), total=total, completed=done, words="")

    def advance(self, n: int = 1, **fields: Any) -> None:
        self.done += n
        self.rich.update(self.task, advance=n, words=clean(_words(fields).lstrip(", ")))


def shows_bars() -> bool:
    """Whether something can move on stderr: it is a terminal, and nobody asked for quiet."""
    return not _quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def progress(total: int, label: str, done: int = 0) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere at most one line every 30 seconds."""
    if not shows_bars():
        yield Progress(total, label, done)
        return
    bar = _Bar(total, label, done)
    with bar.rich:
        yield bar


def _words(fields: dict[str, Any]) -> str:
    """`, loss 0.123` for each field; numbers to four digits."""
    shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in fields.values())
    return "".join(f", {k} {v}" for k, v in zip(fields, shown, strict=True))


def _write(stream: TextIO, text: str) -> None:
    """One line; a reader that went away is no error for talk, and ends a result quietly."""
    try:
        stream.write(text + "\n")
        stream.flush()
    except OSError as e:
        if stream is sys.stdout and not isinstance(e, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # a closed pipe or terminal
        if stream is sys.stdout:
            raise SystemExit(141) from None
