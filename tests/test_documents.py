"""Every command that README and the recipes show is run as it is printed, with fewer steps."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from dreamtune import __version__
from tests import forked

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "src/dreamtune/assets/photos/cherries"
FEWER = {
    "train": ["--steps", "2", "--save-every", "1"],
    "sample": ["--steps", "2", "--count", "2"],
}


def commands(text: str) -> Iterator[list[str]]:
    """`dreamtune …` lines of code blocks, and of a recipe's first comment lines."""
    for line in text.splitlines():
        if match := re.match(r"^(?:#|\$) (dreamtune \S.*)$", line):
            yield shlex.split(match[1].split("  #")[0])[1:]


def world(tmp_path: Path) -> Path:
    shutil.copytree(PHOTOS, tmp_path / "photos")
    shutil.copytree(PHOTOS, tmp_path / "photos-2")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    return tmp_path


def run_all(text: str, folder: Path, fewer: Mapping[str, Sequence[str]] = FEWER) -> int:
    done = 0
    for printed in commands(text):
        args = [re.sub(r"step=\d+", "step=1", arg) for arg in printed]
        code = forked.run([*args, *fewer.get(args[0], [])], folder)
        assert code == 0, (printed, (folder / "stderr").read_text())
        done += 1
    return done


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_a_recipe_runs_as_its_header_says(recipe: Path, tmp_path: Path) -> None:
    text, fewer = recipe.read_text(), FEWER
    if 'prior = "images"' in text:
        fewer = {**FEWER, "train": [*FEWER["train"], "--num-class-images", "4"]}
    assert run_all(text.split("\n\n")[0], world(tmp_path), fewer) >= 3


@pytest.mark.slow
def test_readme_runs_as_printed(tmp_path: Path) -> None:
    assert run_all((ROOT / "README.md").read_text(), world(tmp_path)) >= 5


def test_readme_lists_every_command() -> None:
    from dreamtune import plugins

    text = (ROOT / "README.md").read_text()
    for name in plugins.names("dreamtune.commands"):
        assert f"dreamtune {name}" in text, name


def test_changelog_and_version_agree() -> None:
    heading = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading and heading[1].split()[0].strip("[]") in ("Unreleased", __version__)
