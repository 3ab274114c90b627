"""The whole job as a user does it: a shell, the installed program, bundled pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.test_documents import ROOT, world

HERE = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_a_shell_pipeline_with_command_substitution(tmp_path: Path) -> None:
    """README's own, with fewer steps: stdout of each command is the next one's argument."""
    folder = world(tmp_path)
    text = (ROOT / "README.md").read_text()
    script = re.search(r"^a=\$\(.*?--json$", text, re.MULTILINE | re.DOTALL)
    assert script
    quick = script[0].replace('train "$a"', 'train "$a" --steps 2').replace("--json", "-n 2 --json")
    done = subprocess.run(
        ["bash", "-euc", quick], cwd=folder, env=HERE, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said["images"]) == 2 and all((folder / p).is_file() for p in said["images"])


@pytest.mark.slow
def test_make_demo_ends_with_the_path_of_a_grid(tmp_path: Path) -> None:
    """The commands that `make demo` runs, with fewer steps."""
    shutil.copytree(ROOT / "src/dreamtune/assets/photos", tmp_path / "src/dreamtune/assets/photos")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "demo").mkdir()
    plan = subprocess.run(
        ["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    lines = plan.stdout.replace("\\\n", " ").splitlines()
    commands = [line.split()[1:] for line in lines if "/dreamtune " in line]
    assert [args[0] for args in commands] == ["prep", "train", "sample"]
    for args in commands:
        fewer = [] if args[0] == "prep" else ["--steps", "2"]
        assert forked.run([*args, *fewer], tmp_path) == 0, (tmp_path / "stderr").read_text()
    (last,) = (tmp_path / "stdout").read_text().splitlines()
    assert last == "demo/grid.png" and (tmp_path / last).is_file()
