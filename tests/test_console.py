"""Results go to stdout, talk to stderr, and nobody's text can drive the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamtune import console


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    console.quiet(False)
    yield
    console.quiet(False)


def test_results_go_to_stdout_and_talk_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.out("store/prep/rex/v001")
    console.json({"name": "é"})
    console.say("made it")
    console.hint("train it")
    console.warn("small")
    console.error("gone")
    console.table("Things", ("a", "b"), [("x", 1)])
    out, err = capsys.readouterr()
    first, rest = out.split("\n", 1)
    assert first == "store/prep/rex/v001"
    assert json.loads(rest) == {"name": "é"} and rest.isascii()
    assert err.split("\n")[:4] == ["made it", "→ train it", "warning: small", "error: gone"]
    assert err.split("\n")[4:] == ["Things", "a  b", "x  1", ""]


def test_quiet_keeps_results_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console.quiet()
    console.say("talk")
    console.hint("talk")
    console.table("talk", ("a",), [("b",)])
    with console.progress(2, "talk") as bar:
        bar.advance(2)
    console.warn("w")
    console.error("e")
    console.out("r")
    assert capsys.readouterr() == ("r\n", "warning: w\nerror: e\n")


@given(st.text())
def test_cleaned_text_has_no_control_characters(text: str) -> None:
    cleaned = console.clean(text)
    assert not any(c in cleaned for c in map(chr, [*range(9), *range(11, 32), *range(127, 160)]))
    assert not any(c in cleaned for c in "\u202e\u2066\u200f")
    if text.isprintable():
        assert cleaned == text


def test_a_file_name_cannot_colour_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for tell in (console.say, console.hint, console.warn, console.error):
        tell("\x1b[31mred\x1b]0;title\x07 [bold]rich[/bold].jpg")
    console.table("\x1b[1m", ("a",), [("\x1b[2J",)])
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\x07" not in err
    assert err.count("\\x1b[31mred\\x1b]0;title\\x07 [bold]rich[/bold].jpg") == 4


def test_progress_off_a_terminal_speaks_at_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress(100, "training") as bar:
        for _ in range(100):
            now[0] += 1.0
            bar.advance(1, loss=0.12345)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training 30/100, loss 0.1235, 1:10 left",
        "training 60/100, loss 0.1235, 0:40 left",
        "training 90/100, loss 0.1235, 0:10 left",
    ]


def in_python(code: str, **kwargs: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-W", "error", "-c", f"from dreamtune import console\n{code}"]
    return subprocess.run(command, check=False, stderr=subprocess.PIPE, timeout=60, **kwargs)


def test_a_bar_on_a_terminal_shows_label_fields_and_no_markup() -> None:
    leader, follower = os.openpty()
    code = "with console.progress(3, '[red]x') as bar:\n    bar.advance(3, loss=0.5)"
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-W", "error", "-c", f"from dreamtune import console\n{code}"]
    subprocess.run(command, check=True, stderr=follower, env=env, timeout=60)
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert "[red]x" in shown and "3/3" in shown and "loss 0.5" in shown


def test_a_reader_that_leaves_ends_a_result_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    done = in_python("console.out('x' * 100)\nconsole.say('never')", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_closed_log_never_ends_the_work(tmp_path: Path) -> None:
    marker = tmp_path / "done"
    read, write = os.pipe()
    os.close(read)
    code = f"console.say('x')\nconsole.warn('y')\nopen({str(marker)!r}, 'w').close()"
    command = [sys.executable, "-c", f"from dreamtune import console\n{code}"]
    assert subprocess.run(command, check=False, stderr=write, timeout=60).returncode == 0
    os.close(write)
    assert marker.exists()


def test_an_undecodable_path_keeps_its_bytes_on_stdout() -> None:
    code = r"console.out('caf\udce9/x'); console.say('caf\udce9')"
    done = in_python(code, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, b"caf\xe9/x\n")
    assert done.stderr == b"caf\\udce9\n"
