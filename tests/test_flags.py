"""Flags are made from settings: one per field, unset unless given, foreign ones refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from dreamtune import flags, recipe
from dreamtune.errors import Usage
from dreamtune.settings import option


@dataclass(frozen=True)
class Train:
    steps: int = option(300, help="Steps.", short="-s")
    learning_rate: float | None = option(None, help="Rate.", alias=("--lr",))
    ema: bool = option(False, help="Average.", alias=("--use-ema",))
    targets: tuple[str, ...] = option(("q", "v"), help="Modules.", flag="--target")
    area: float = option(1.0, help="Only for recipes.", flag=None)
    mode: str = option("a", help="Mode.", choices=("a", "b"))


@dataclass(frozen=True)
class Lora:
    rank: int = option(16, help="Rank.", low=1)
    dropout: float = option(0.0, help="Drop.")


@dataclass(frozen=True)
class Lokr:
    factor: int = option(8, help="Factor.")
    dropout: float = option(0.1, help="Drop.")


Result = dict[str, Any]


@pytest.fixture
def got(monkeypatch: pytest.MonkeyPatch) -> Iterator[Result]:
    monkeypatch.setattr(recipe, "method_options", lambda: {"lora": Lora, "lokr": Lokr})
    yield {}


def run(got: Result, *args: str, method: bool = True) -> Any:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)

    def plain(
        train: Train,
        photos: Annotated[str | None, typer.Argument()] = None,
        json: flags.Json = False,
    ) -> None:
        """Train it."""
        got.update(train=train, photos=photos, json=json)

    def full(
        train: Train,
        method: recipe.Chosen,
        photos: Annotated[str | None, typer.Argument()] = None,
        json: flags.Json = False,
    ) -> None:
        """Train it."""
        got.update(train=train, method=method, photos=photos, json=json)

    app.command()(flags.command_signature(full if method else plain, Train, method=method))
    return CliRunner().invoke(app, list(args), env={"COLUMNS": "200"})


def test_nothing_given_means_the_defaults(got: Result) -> None:
    assert run(got).exit_code == 0
    assert got == {
        "train": Train(),
        "method": recipe.Chosen("lora", Lora()),
        "photos": None,
        "json": False,
    }


def test_every_kind_of_flag_arrives_typed(got: Result) -> None:
    args = "rex -s 5 --lr 1e-3 --ema --target a --target b,c --mode b --json --rank 4"
    result = run(got, *args.split())
    assert result.exit_code == 0, result.output
    expected = Train(steps=5, learning_rate=1e-3, ema=True, targets=("a", "b,c"), mode="b")
    assert got["train"] == expected
    assert got["method"].options == Lora(rank=4)
    assert (got["photos"], got["json"]) == ("rex", True)


def test_no_turns_a_recipe_s_yes_off(got: Result, tmp_path: Any) -> None:
    file = tmp_path / "r.toml"
    file.write_text("[train]\nema = true\narea = 0.5\nsteps = 9\n[method]\nname = 'lokr'\n")
    run(got, "--recipe", str(file), "--no-ema", "--set", "train.steps=7")
    assert got["train"] == Train(ema=False, area=0.5, steps=7)
    assert got["method"] == recipe.Chosen("lokr", Lokr())
    run(got, "-c", str(file), "--use-ema", "-m", "lora", "--dropout", "0.5")
    assert got["train"].ema is True and got["method"] == recipe.Chosen("lora", Lora(dropout=0.5))


def test_a_field_without_a_flag_is_reached_by_set_only(got: Result) -> None:
    assert run(got, "--set", "area=0.5").exit_code == 0 and got["train"].area == 0.5
    assert run(got, "--area", "0.5").exit_code == 2


def test_the_flag_of_another_method_is_refused_with_everything_else(got: Result) -> None:
    result = run(got, "--method", "lokr", "--rank", "3", "--mode", "c", "--steps", "1.5")
    assert isinstance(result.exception, Usage) and got == {}
    assert sorted(str(result.exception).splitlines()) == [
        "--mode c: must be a or b",
        "--rank belongs to method lora, not lokr",
        "--steps 1.5: must be a whole number",
    ]


def test_a_flag_and_its_alias_together_are_refused(got: Result) -> None:
    result = run(got, "--lr", "1", "--learning-rate", "2")
    assert isinstance(result.exception, Usage)
    assert str(result.exception) == "--lr is the same as --learning-rate"


def test_help_shows_ranges_defaults_and_owners_but_no_aliases(got: Result) -> None:
    text = run(got, "--help").output
    assert "-s, --steps N" in text and "Steps. [300]" in text
    assert "--mode a|b" in text and "--ema / --no-ema" in text and "Modules. [q v]" in text
    assert "lora: Rank. [16]" in text and "lora, lokr: Drop." in text and "lokr: Factor." in text
    assert "--lr" not in text and "--use-ema" not in text and "--area" not in text


def test_a_command_without_method_has_no_method_flags(got: Result) -> None:
    assert run(got, "--steps", "2", method=False).exit_code == 0
    assert got["train"].steps == 2
    assert run(got, "--rank", "2", method=False).exit_code == 2


def test_methods_must_agree_on_a_shared_flag(got: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Odd:
        dropout: int = option(1, help="Other type.")

    monkeypatch.setattr(recipe, "method_options", lambda: {"lora": Lora, "odd": Odd})
    with pytest.raises(AssertionError, match="dropout"):
        run(got)


def test_methods_may_not_take_a_flag_of_train(got: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Odd:
        steps: int = option(1, help="Taken.")

    monkeypatch.setattr(recipe, "method_options", lambda: {"odd": Odd})
    with pytest.raises(AssertionError, match="steps"):
        run(got)


@pytest.mark.parametrize("command", ["prep", "train", "sample"])
def test_real_commands_build_and_are_not_too_wide(command: str) -> None:
    from dreamtune import cli

    result = CliRunner().invoke(cli.build(), [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    shown = [line for line in result.output.splitlines() if line.startswith("  -")]
    assert 5 < len(shown) <= 42  # about thirty settings, and what every command has


def test_rare_settings_are_flags_that_help_leaves_out() -> None:
    from dreamtune import cli

    text = CliRunner().invoke(cli.build(), ["train", "--help"], env={"COLUMNS": "200"}).output
    assert "--weight-decay" not in text and "recipe dump" in text
    dry = CliRunner().invoke(cli.build(), ["train", "--weight-decay", "2", "--dry-run"])
    assert "at least 0 and at most 1" in str(dry.exception)
