"""A name is a file, and a wrong name gets the near miss."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dreamtune import plugins
from dreamtune.errors import Usage


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package "colours.methods" with two public modules; importing `green` fails."""
    folder = tmp_path / "colours" / "methods"
    folder.mkdir(parents=True)
    for init in (folder, folder.parent):
        (init / "__init__.py").touch()
    (folder / "red.py").write_text("NAME = 'red'\n")
    (folder / "green.py").write_text("raise RuntimeError('imported')\n")
    (folder / "_private.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "colours.methods"
    for name in [n for n in sys.modules if n.split(".")[0] == "colours"]:
        del sys.modules[name]


def test_names_are_the_public_modules_and_none_is_imported(package: str) -> None:
    assert plugins.names(package) == ["green", "red"]
    assert "colours.methods.green" not in sys.modules


def test_a_dropped_in_file_is_a_plugin(package: str, tmp_path: Path) -> None:
    (tmp_path / "colours" / "methods" / "blue.py").write_text("NAME = 'blue'\n")
    assert plugins.names(package) == ["blue", "green", "red"]
    assert plugins.load(package, "blue").NAME == "blue"


@pytest.mark.parametrize("name", ["rde", "_private", "../red", "", "red.x"])
def test_an_unknown_name_is_a_usage_error(package: str, name: str) -> None:
    with pytest.raises(Usage) as e:
        plugins.load(package, name)
    assert str(e.value).startswith(f"unknown method {name!r}; ")
    assert "red" in str(e.value)


def test_the_near_miss_is_suggested(package: str) -> None:
    with pytest.raises(Usage, match=r"unknown method 'grene'; did you mean 'green'\?"):
        plugins.load(package, "grene")
