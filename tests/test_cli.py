"""The real command line: exit codes, one line per error, what goes where, and how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from dreamtune import __version__, cli, console, errors, fsops, plugins, recipe
from dreamtune.artifacts import Artifact
from dreamtune.store import Store

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with no store and no settings from outside."""
    for name in [n for n in os.environ if n.startswith("DREAMTUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dreamtune(*args: str, **kwargs: Any) -> Done:
    command = [sys.executable, "-W", "error", "-m", "dreamtune", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


@pytest.fixture
def rex(home: Path) -> Artifact:
    store = Store.open()
    with store.draft("prep", "rex", "a" * 64, {"prep": {"class": "dog"}}, ["b" * 64]) as draft:
        fsops.write_bytes(draft.path / "samples.jsonl", b"{}\n")
        return draft.commit({"seconds": 1})


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The same in this process: (exit code, stdout, stderr)."""

    def run(*args: str) -> tuple[int, str, str]:
        console.quiet(False)
        code = cli.run(list(args))
        console.quiet(False)
        return code, *capsys.readouterr()

    return run


# Start-up.


def test_version_and_help(home: Path) -> None:
    assert dreamtune("--version").stdout == f"dreamtune {__version__}\n"
    for args in (["--help"], ["-h"], []):
        done = dreamtune(*args)
        assert done.returncode == 0 and done.stderr == ""
        assert all(f"  {c} " in done.stdout for c in ("prep", "train", "list", "verify"))


@pytest.mark.parametrize("command", plugins.names("dreamtune.commands"))
def test_every_command_has_help(run: Any, command: str) -> None:
    code, out, err = run(command, "-h")
    assert (code, err) == (0, "") and out.startswith(f"Usage: dreamtune {command}")


QUICK = [
    (["--help"], 0),
    (["train", "--help"], 0),
    (["train", "--rnak", "3"], 2),
    (["train", "--recipe", "typo.toml"], 2),
    (["trian"], 2),
]


@pytest.mark.parametrize(("args", "code"), QUICK)
def test_answers_at_once_and_without_torch(home: Path, args: list[str], code: int) -> None:
    """The seconds are measured by bench/startup.py; what costs them is checked here."""
    (home / "typo.toml").write_text("[train]\nlearing_rate = 1e-4\n")
    seen = "import sys, dreamtune.cli as c\ncode = c.run(sys.argv[1:])\n"
    seen += "heavy = {'torch', 'rich', 'pydantic', 'numpy', 'PIL'} & set(sys.modules)\n"
    seen += "print('HEAVY', *heavy); sys.exit(code)"
    command = [sys.executable, "-c", seen, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("HEAVY\n")


# Errors.


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["trian"], 2, ["No such command 'trian'", "'train'"]),
        (["train", "--stpes", "3"], 2, ["--stpes", "--steps"]),
        (["train", "--method", "lorra"], 2, ["unknown method 'lorra'", "'lora'"]),
        (["train", "--rank", "0"], 2, ["--rank 0: must be at least 1"]),
        (["train", "--method", "embedding", "--rank", "4"], 2, ["--rank belongs to method lora"]),
        (["train", "--set", "train.stepps=1"], 2, ["train.stepps", "did you mean 'steps'"]),
        (["recipe", "validate", "nothing.toml"], 10, ["no recipe 'nothing.toml'"]),
        (["show", "rex"], 10, ["no artifact 'rex'", "artifacts has no artifact yet"]),
        (["verify"], 10, ["no store at artifacts", "DREAMTUNE_STORE"]),
        (["list", "--store", "file"], 2, ["the store file is a file"]),
        (["show"], 2, ["REF", "ref"]),
    ],
)
def test_a_wrong_start_is_one_line_and_its_code(
    run: Any, home: Path, args: list[str], code: int, words: list[str]
) -> None:
    (home / "file").touch()
    got, out, err = run(*args)
    assert (got, out) == (code, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert any(w in err for w in words) if args == ["show"] else all(w in err for w in words)


def test_every_problem_has_its_own_line(run: Any, home: Path) -> None:
    (home / "r.toml").write_text("[train]\nbatch = 0\nlearing_rate = 1\n[trian]\n")
    code, out, err = run("recipe", "validate", "r.toml")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 3 and all(s.startswith("error: ") for s in err.splitlines())


def test_with_json_the_error_is_json_too(run: Any) -> None:
    code, out, err = run("show", "rex", "--json")
    document = json.loads(out)
    assert code == 10 == document["code"] and document["message_type"] == "exit_error"
    assert err == f"error: {document['message']}\n"
    code, out, _ = run("list", "--json", "--nope")
    assert json.loads(out)["code"] == 2 == code


KINDS = {
    "UserError": 2, "Usage": 2, "SetAside": 3, "NotFound": 10, "Locked": 11, "Damaged": 12,
    "Unsafe": 13, "NonFinite": 14, "Resources": 15, "Network": 16, "WouldOverwrite": 17,
}  # fmt: skip


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException, command: str = "list") -> None:
    def register(app: typer.Typer) -> None:
        @app.command(command)
        def fail() -> None:
            raise error

    real = plugins.load

    def load(package: str, name: str) -> Any:
        module = real(package, name)
        if name == command:
            monkeypatch.setattr(module, "register", register)
        return module

    monkeypatch.setattr(plugins, "load", load)


def test_no_kind_of_error_is_without_a_code() -> None:
    kinds = [c for c in vars(errors).values() if isinstance(c, type)]
    known = {c.__name__ for c in kinds if issubclass(c, errors.UserError)}
    assert known == {*KINDS, "Interrupted"}
    assert errors.Interrupted(15, "saved").code == 143


@pytest.mark.parametrize(("name", "code"), KINDS.items())
def test_every_kind_of_error_has_its_code(
    run: Any, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    raising(monkeypatch, getattr(errors, name)("it broke", why="because", fix="mend it"))
    assert run("list") == (code, "", "error: it broke: because; mend it\n")


def test_a_bug_is_one_line_and_a_traceback_only_on_request(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, ValueError("first\nsecond \x1b[31m"))
    code, out, err = run("list")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert err.startswith("error: internal error (ValueError: first); run it again with")
    code, out, err = run("--debug", "list")
    assert code == 1 and "Traceback" in err and "second \\x1b[31m" in err
    monkeypatch.setenv("DREAMTUNE_DEBUG", "1")
    assert "Traceback" in run("list")[2]
    monkeypatch.setenv("DREAMTUNE_DEBUG", "0")
    assert "Traceback" not in run("list")[2]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(28, "No space left on device", "/x"), 15),
        (OSError(122, "Disk quota exceeded"), 15),
        (MemoryError(), 15),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), 15),
        (RuntimeError("CUDA error: device-side assert triggered"), 1),
        (OSError(5, "Input/output error"), 15),
        (OSError(24, "Too many open files"), 15),
        (OSError(13, "Permission denied", "/x"), 15),
        (OSError(2, "No such file or directory", "/x"), 10),
        (OSError(36, "File name too long", "x" * 5000), 2),
        (OSError(9, "Bad file descriptor"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(143), 143),
    ],
)
def test_what_the_machine_does_has_its_code(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    raising(monkeypatch, error)
    if isinstance(error, SystemExit):
        with pytest.raises(SystemExit) as e:
            run("list")
        assert e.value.code == code
    else:
        got, _, err = run("list")
        assert got == code and err.count("\n") <= 1 and len(err) < 300


def test_out_of_memory_says_what_needs_less(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, MemoryError())
    assert run("list")[2] == "error: out of memory; free some and run it again\n"
    raising(monkeypatch, MemoryError(), "sample")
    assert "--size" in run("sample")[2]
    raising(monkeypatch, MemoryError(), "train")
    code, _, err = run("--debug", "train")
    assert code == 15 and "--gradient-checkpointing" in err and "--resume" in err


def test_a_reader_that_leaves_is_no_error(home: Path) -> None:
    store = Store.open()
    for n in range(3):
        with store.draft("prep", f"rex{n}", f"{n}" * 64, {}, []) as draft:
            draft.commit({})
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dreamtune", "list"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    "change",
    [
        {"HOME": None},
        {"LANG": "C", "LC_ALL": "C"},
        {"COLUMNS": "20"},
        {"TERM": "dumb"},
        {"NO_COLOR": "1"},
    ],
)
def test_a_poor_environment_is_enough(rex: Artifact, change: dict[str, str | None]) -> None:
    env = {k: v for k, v in {**os.environ, **change}.items() if v is not None}
    done = dreamtune("show", "rex", env=env, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{rex.path}\n" and "\x1b" not in done.stderr


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_stream_that_is_closed_from_outside(rex: Artifact, stream: int) -> None:
    shell = f'exec "$0" -m dreamtune verify --deep --json {stream}>&-'
    done = subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout or b"[1]")


def test_a_current_folder_that_is_gone(home: Path) -> None:
    shell = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" -m dreamtune doctor'
    done = subprocess.run(["sh", "-c", shell, sys.executable], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (10, b"")
    assert done.stderr == b"error: the current folder is gone; cd to another one\n"


# The light commands.


def test_list(run: Any, rex: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("list") == (0, f"{rex.path}\n", "")
    assert run("list", "adapter") == (0, "", "")
    code, out, err = run("list", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        {
            "path": str(rex.path),
            "kind": "prep",
            "name": "rex",
            "version": "v001",
            "id": rex.id,
            "key": rex.key,
            "parents": ["b" * 64],
            "sound": True,
        }
    ]
    (rex.path / "samples.jsonl").unlink()
    code, out, err = run("list", "--json")
    assert json.loads(out)[0]["sound"] is False and "samples.jsonl: missing" in err


def test_list_on_a_terminal_is_a_table(rex: Artifact) -> None:
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "dreamtune", "list"]
    done = subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, timeout=60)
    os.close(follower)
    os.close(leader)
    lines = done.stderr.decode().split("\n")
    assert any(line.split() == ["prep", "rex@v001", rex.id[:12], str(rex.path)] for line in lines)
    assert b"\x1b" not in done.stderr


def test_an_empty_store_says_what_to_do(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = run("list")
    assert (code, out) == (0, "") and "nothing in artifacts yet" in err and "dreamtune prep" in err


def test_show(run: Any, rex: Artifact) -> None:
    code, out, err = run("show", "rex@v001")
    assert (code, out) == (0, f"{rex.path}\n")
    facts = ("prep rex@v001", rex.id, rex.key, "b" * 64, 'class = "dog"', "samples.jsonl")
    for fact in (*facts, "run.json"):
        assert fact in err
    code, out, err = run("show", rex.id[:6], "--json", "--kind", "prep")
    assert (code, err) == (0, "")
    shown = json.loads(out)
    assert shown.pop("path") == str(rex.path) and shown == rex.read_json("manifest.json")


def test_verify(run: Any, rex: Artifact) -> None:
    assert run("verify", "rex", "--deep") == (0, "", "1 of 1 artifacts are sound (every byte)\n")
    assert run("-q", "verify") == (0, "", "")
    (rex.path / "samples.jsonl").write_bytes(b"[]\n")
    assert run("verify")[0] == 0
    code, out, err = run("verify", "--deep")
    assert (code, out) == (12, "")
    assert err.splitlines() == [
        f"error: {rex.path}: samples.jsonl: its bytes have changed",
        "error: 1 of 1 artifacts are damaged",
    ]
    code, out, err = run("verify", "--deep", "--json")
    assert code == 12 and json.loads(out) == [
        {
            "path": str(rex.path),
            "sound": False,
            "problems": ["samples.jsonl: its bytes have changed"],
        }
    ]


def test_recipe_dump_can_be_validated_and_dumped_again(run: Any, home: Path) -> None:
    code, text, err = run("recipe", "dump")
    assert (code, err) == (0, "") and "[train]\n" in text and 'name = "lora"' in text
    (home / "mine.toml").write_text(text)
    assert run("recipe", "validate", "mine.toml") == (0, "", "mine.toml is a valid recipe\n")
    assert run("recipe", "dump", "mine.toml") == (0, text, "")


def test_recipe_dump_of_an_artifact(run: Any, rex: Artifact) -> None:
    assert run("recipe", "dump", "rex") == (0, '[prep]\nclass = "dog"\n', "")


@pytest.mark.parametrize("name", recipe.bundled() or [pytest.param("", marks=pytest.mark.skip)])
def test_every_bundled_recipe_is_valid(run: Any, name: str) -> None:
    assert run("recipe", "validate", name)[0] == 0


def test_the_store_flag_goes_over_the_environment(
    run: Any, home: Path, rex: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMTUNE_STORE", str(home / "empty"))
    assert run("list")[1] == ""
    assert run("list", "--store", "artifacts")[1] == f"{rex.path}\n"


def test_a_dropped_in_command_is_a_command(
    run: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dreamtune.commands as package

    (home / "extra").mkdir()
    (home / "extra" / "wave.py").write_text(
        "def register(app):\n    app.command('wave')(lambda: print('hello'))\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(home / "extra")])
    assert run("wave") == (0, "hello\n", "")


def test_completion_knows_commands_and_flags(home: Path) -> None:
    def complete(words: str, index: int) -> list[str]:
        env = {**os.environ, "_DREAMTUNE_COMPLETE": "complete_bash"}
        env |= {"COMP_WORDS": words, "COMP_CWORD": str(index)}
        return dreamtune(env=env).stdout.split()

    assert "train" in complete("dreamtune tr", 1)
    assert "--rank" in complete("dreamtune train --ra", 2)
