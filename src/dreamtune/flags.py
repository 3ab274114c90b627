"""Flags are made from settings: a command names its dataclasses, and its options follow.

Flags reach the recipe as text and unchecked, so that a wrong flag is reported beside a wrong
recipe key, in the same words, and with the same range.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import recipe
from .errors import Usage

Store = Annotated[Path | None, typer.Option("--store", help="Folder of artifacts [./artifacts].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]

_RECIPE = typer.Option("--recipe", "-c", metavar="FILE|NAME", help="Recipe with settings (TOML).")
_SET = typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Any setting of a recipe.")
MORE = "`dreamtune recipe dump` lists rarer settings; each is a flag too."

_METHOD = typer.Option("--method", "-m", metavar="NAME", help="What is trained.")


def command_signature(
    func: Callable[..., None], *schemas: type, method: bool = False
) -> Callable[..., None]:
    """`func` as Typer can register it: its own parameters, and a flag for every setting.

    `func` gets the resolved settings under their tables' names: `train: Train` for schema Train,
    and `method: Chosen` with `method=True`, which also offers the flags of every method. --recipe
    and --set come by themselves.
    """
    tables = {schema.__name__.lower(): schema for schema in schemas}
    settings = _settings(dict.fromkeys(schemas, ""))
    if method:
        theirs = _settings({o: f"{name}: " for name, o in recipe.method_options().items()})
        assert not settings.keys() & theirs.keys(), settings.keys() & theirs.keys()
        settings |= theirs
    aliases = {alias: key for key, s in settings.items() for alias in s.field.metadata["alias"]}
    made = [_flag(setting) for setting in settings.values()]
    made += [_parameter("method", _METHOD)] if method else []
    made += [_parameter("recipe_file", _RECIPE), _parameter("sets", _SET, list[str])]
    made += [_alias(name, settings[key]) for name, key in aliases.items()]

    @functools.wraps(func)
    def command(**given: Any) -> None:
        values = {p.name: given.pop(p.name) for p in made}
        file, sets = values.pop("recipe_file"), values.pop("sets") or ()
        for name, key in aliases.items():
            if (value := values.pop(_identifier(name))) is not None:
                if values[key] is not None:
                    raise Usage(f"{name} is the same as {recipe.flag_name(settings[key].field)}")
                values[key] = value
        settled = recipe.resolve_all(tables, method=method, file=file, flags=values, sets=sets)
        func(**given, **settled)

    own = _own(func, {*tables, *(["method"] if method else [])})
    _sign(command, [*own, *made])
    return command


@dataclasses.dataclass
class _Setting:
    field: dataclasses.Field[Any]
    hint: Any  # its type
    owner: str  # "lora: ", or nothing for what every method has


def _settings(schemas: dict[type, str]) -> dict[str, _Setting]:
    """Every field that has a flag; what two methods share must have one type."""
    found: dict[str, _Setting] = {}
    for schema, owner in schemas.items():
        hints = typing.get_type_hints(schema)
        for field in dataclasses.fields(schema):
            if field.metadata["flag"] is None:
                continue
            new = _Setting(field, hints[field.name], owner)
            old = found.setdefault(field.name, new)
            assert old.hint == new.hint, f"{field.name} is {old.hint} and {new.hint}"
            if old is not new:
                old.owner = old.owner.replace(": ", ", ") + owner
    return found


def _flag(setting: _Setting) -> inspect.Parameter:
    """The flag of one setting; unset is None, so that a recipe or the default holds."""
    field = setting.field
    kind, item = recipe.kind_of(setting.hint)
    name, short = recipe.flag_name(field), field.metadata["short"]
    names, rare = [name, *([short] if short else [])], field.metadata["rare"]
    choices = field.metadata.get("choices")
    text = setting.owner + field.metadata["help"] + _default(field.default)
    metavar = "|".join(map(str, choices)) if choices else _METAVARS.get(item or kind)
    if kind is bool:
        names[0] += name.replace("--", "/--no-", 1)
        return _parameter(field.name, typer.Option(*names, help=text, hidden=rare), bool)
    option = typer.Option(*names, help=text, metavar=metavar, hidden=rare)
    return _parameter(field.name, option, list[str] if item else str)


def _alias(name: str, setting: _Setting) -> inspect.Parameter:
    """A name that other trainers use for the same flag; it works and is not shown."""
    kind, item = recipe.kind_of(setting.hint)
    type_ = bool if kind is bool else list[str] if item else str
    return _parameter(_identifier(name), typer.Option(name, hidden=True), type_)


_METAVARS = {int: "N", float: "X", str: "TEXT"}


def _default(value: Any) -> str:
    """The default in brackets, for the end of a help text."""
    if value is None or value == ():
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f" [{str(shown).lower() if isinstance(shown, bool) else shown}]"


def _parameter(name: str, option: Any, type_: Any = str) -> inspect.Parameter:
    annotation = Annotated[type_ | None, option]
    return inspect.Parameter(name, _KEYWORD, default=None, annotation=annotation)


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _identifier(flag: str) -> str:
    return "alias_" + flag.strip("-").replace("-", "_")


def _own(func: Callable[..., None], settled: set[str]) -> list[inspect.Parameter]:
    """The parameters that `func` declares by itself, made keyword-only."""
    hints = typing.get_type_hints(func, include_extras=True)
    parameters = inspect.signature(func).parameters.values()
    return [
        p.replace(kind=_KEYWORD, annotation=hints[p.name])
        for p in parameters
        if p.name not in settled
    ]


def _sign(command: Any, parameters: list[inspect.Parameter]) -> None:
    """Give a function the signature that Typer reads."""
    del command.__wrapped__
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
