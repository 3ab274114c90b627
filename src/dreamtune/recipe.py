"""Settings: a flag, over --set table.key=value, over a recipe file, over the default.

A recipe is TOML with one table per stage, [prep] [train] [sample], and [method] with `name` and
that method's Options. Nothing is guessed and nothing ignored: every unknown key, wrong type and
value out of range is collected, and all of them are told at once, before anything heavy loads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import console, plugins, settings
from .errors import NotFound, Usage, UserError, suggest

T = TypeVar("T")
METHODS, METHOD = "dreamtune.methods", "method"
DEFAULT_METHOD = "lora"
TABLES: dict[str, type] = {
    name.lower(): schema
    for name, schema in vars(settings).items()
    if isinstance(schema, type) and dataclasses.is_dataclass(schema)
}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The [method] table: a method's name and its Options."""

    name: str
    options: Any


@dataclasses.dataclass(frozen=True)
class _Given:
    """A value as someone wrote it, as text (a flag, --set) or typed (TOML), and after what."""

    where: str
    value: Any
    text: bool


def resolve(
    schema: type[T],
    *,
    table: str,
    file: Path | str | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> T:
    """One table of settings as a frozen dataclass; Usage with all problems, one a line.

    flags: field name to value, None meaning not given
    sets:  "table.key=value", or "key=value"
    """
    return resolve_all({table: schema}, file=file, flags=flags, sets=sets)[table]


def resolve_all(
    schemas: Mapping[str, type],
    *,
    method: bool = False,
    file: Path | str | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> dict[str, Any]:
    """Several tables at once; with `method` also "method", a `Chosen`."""
    problems: list[str] = []
    given = dict(_from_file(file, problems)) if file else {}
    asked = {k: v for k, v in (flags or {}).items() if v is not None}
    tables, name = dict(schemas), ""
    if method:
        name = _method_name(asked.pop(METHOD, None), sets, given, problems)
        tables[METHOD] = method_options().get(name, _Nothing)
    given |= _from_sets(sets, tables, problems)
    given |= _from_flags(asked, tables, name, problems)
    given = {path: g for path, g in given.items() if path[0] in tables}
    values = {t: _table(t, schema, given, problems) for t, schema in tables.items()}
    if problems:
        raise Usage("\n".join(problems))
    if method:
        values[METHOD] = Chosen(name, values[METHOD])
    return values


def validate(file: Path | str | None) -> dict[str, Any]:
    """Resolve every table of a recipe (None: the defaults); Usage with all problems."""
    return resolve_all(TABLES, method=True, file=file)


@functools.cache
def method_options() -> dict[str, type]:
    """The Options of every method, by name. Method modules are light to import."""
    return {name: plugins.load(METHODS, name).Options for name in plugins.names(METHODS)}


# Where values come from.

_Values = dict[tuple[str, str], _Given]  # (table, key)


@dataclasses.dataclass(frozen=True)
class _Nothing:
    """Stands in for the Options of a method that does not exist."""


def _from_file(file: Path | str, problems: list[str]) -> Iterator[tuple[tuple[str, str], _Given]]:
    known = [*TABLES, METHOD]
    for table, body in load(file).items():
        if not isinstance(body, dict):
            problems.append(f"{table}: unknown key outside any table, {_hint(table, known)}")
        elif table not in known:
            problems.append(f"[{table}]: unknown table, {_hint(table, known)}")
        else:
            for key, value in body.items():
                yield (table, key), _Given(f"{table}.{key} = ", value, text=False)


def _from_sets(sets: Sequence[str], tables: Mapping[str, type], problems: list[str]) -> _Values:
    found: _Values = {}
    for item in sets:
        path, equals, value = item.partition("=")
        table, dot, key = path.strip().rpartition(".")
        owners = [table] if dot else [t for t, schema in tables.items() if key in _names(schema)]
        if not equals:
            problems.append(f"--set {item}: write --set table.key=value")
        elif len(owners) > 1:
            problems.append(f"--set {item}: write one of {_list(f'{t}.{key}' for t in owners)}")
        elif not owners or owners[0] not in tables:
            hint = _hint(path, [f"{t}.{k}" for t, s in tables.items() for k in _names(s)])
            problems.append(f"--set {path}: unknown key, {hint}")
        else:
            found[owners[0], key] = _Given(f"--set {path}=", value.strip(), text=True)
    return found


def _from_flags(
    flags: Mapping[str, Any], tables: Mapping[str, type], method: str, problems: list[str]
) -> _Values:
    found: _Values = {}
    for key, value in flags.items():
        owners = [t for t, schema in tables.items() if key in _names(schema)]
        if owners:
            found[owners[0], key] = _Given(f"{_flag(tables[owners[0]], key)} ", value, text=True)
        elif method in method_options():
            theirs = {n: o for n, o in method_options().items() if key in _names(o)}
            flag = _flag(next(iter(theirs.values())), key)
            problems.append(f"{flag} belongs to method {_list(theirs, 'and')}, not {method}")
    return found


def _method_name(flag: str | None, sets: Sequence[str], given: _Values, problems: list[str]) -> str:
    """The method that is asked for; a problem when there is none of that name."""
    in_file = given.pop((METHOD, "name"), None)
    in_sets = [s.partition("=")[2] for s in sets if s.startswith(f"{METHOD}.name=")]
    name = flag or (in_sets or [in_file.value if in_file else DEFAULT_METHOD])[-1]
    if name not in method_options():
        problems.append(f"unknown method {name!r}, {_hint(str(name), method_options())}")
    return str(name)


# Checking.


def _table(table: str, schema: type, given: _Values, problems: list[str]) -> Any:
    """Build one dataclass, noting every problem on the way."""
    hints = typing.get_type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(schema)}
    values, before = {}, len(problems)
    for (owner, key), g in given.items():
        if owner != table or (table == METHOD and key == "name") or schema is _Nothing:
            continue
        if key not in fields:
            problems.append(f"{g.where.rstrip(' =')}: unknown key, {_hint(key, fields)}")
            continue
        try:
            value = _parse(hints[key], g.value) if g.text else g.value
            values[key] = _check(hints[key], value, fields[key].metadata)
        except ValueError as e:
            shown = g.value if g.text else json.dumps(g.value, default=str)
            problems.append(f"{g.where}{shown}: {e}")
    if len(problems) > before:
        return None
    try:
        return schema(**values)
    except UserError as e:
        problems.append(f"[{table}] {e}")
        return None


def _parse(hint: Any, text: Any) -> Any:
    """Text of a flag or --set as the type asks; what is no number stays text and fails later."""
    kind, item = kind_of(hint)
    if item:
        return [_parse(item, part) for part in _parts(text, item)]
    if not isinstance(text, str) or kind is str:
        return text
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _parts(text: Any, item: type) -> list[Any]:
    """Items of a list: a flag given several times, or "a, b", or TOML's ["a", "b"]."""
    if isinstance(text, list) and item is str:
        return text
    text = ",".join(text) if isinstance(text, list) else text
    with contextlib.suppress(ValueError):
        if text.startswith("["):
            return list(_loads(f"x = {text}")["x"])
    return [part.strip() for part in text.strip("[]").split(",") if part.strip()]


def _check(hint: Any, value: Any, rules: Mapping[str, Any]) -> Any:
    """`value` when it has the type and keeps the rules; ValueError otherwise."""
    kind, item = kind_of(hint)
    if item:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"must be a list, each item {_WORDS[item]}")
        return tuple(_check(item, v, rules) for v in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"must be {_WORDS[kind]}{_range(rules, ', ')}")
    if kind is str and console.clean(value) != value:
        raise ValueError("has control characters")
    if "choices" in rules and value not in rules["choices"]:
        raise ValueError(f"must be {_list(map(str, rules['choices']))}")
    if kind in (int, float) and not _in_range(value, rules):
        raise ValueError(f"must be {_range(rules)}")
    return value


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def kind_of(hint: Any) -> tuple[Any, Any]:
    """(int, None) for int and int | None, (tuple, str) for tuple[str, ...]."""
    if isinstance(hint, types.UnionType):
        (hint,) = (a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is tuple:
        return tuple, typing.get_args(hint)[0]
    if hint not in _WORDS:
        raise TypeError(f"settings cannot be of type {hint}")
    return hint, None


def _in_range(value: float, rules: Mapping[str, Any]) -> bool:
    return (
        rules.get("low", -math.inf) <= value <= rules.get("high", math.inf)
        and rules.get("above", -math.inf) < value < rules.get("below", math.inf)
        and ("multiple" not in rules or value % rules["multiple"] == 0)
    )


def _range(rules: Mapping[str, Any], before: str = "") -> str:
    """The range in words: "at least 1 and at most 1024"."""
    words = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
    words["multiple"] = "a multiple of"
    text = " and ".join(f"{w} {rules[k]:,}" for k, w in words.items() if k in rules)
    return before + text if text else ""


def _names(schema: type) -> list[str]:
    return [f.name for f in dataclasses.fields(schema)]


def _flag(schema: type, key: str) -> str:
    return flag_name(next(f for f in dataclasses.fields(schema) if f.name == key))


def flag_name(field: dataclasses.Field[Any]) -> str:
    """The flag of a field: "--learning-rate" for learning_rate, unless it names another."""
    return field.metadata.get("flag") or "--" + field.name.replace("_", "-")


def _hint(word: str, known: typing.Iterable[str]) -> str:
    known = sorted(known)
    listed = ", ".join(known) or "none"
    return suggest(word, known) or (
        f"known: {listed}" if len(listed) < 200 else "`dreamtune recipe dump` lists all"
    )


def _list(words: typing.Iterable[str], last: str = "or") -> str:
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


# Files.


def load(file: Path | str) -> dict[str, Any]:
    """The tables of a recipe file, or of a bundled recipe by name."""
    path = find(file)
    try:
        return _loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise Usage(f"{path} is not valid TOML", why=str(e)) from None
    except OSError as e:
        raise Usage(f"cannot read {path}", why=e.strerror or "") from None


def _loads(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


def find(file: Path | str) -> Path:
    """The path of a recipe file or of a bundled recipe."""
    path = Path(file)
    if path.is_file():
        return path
    known = bundled()
    if str(file) in known:
        return known[str(file)]
    raise NotFound(f"no recipe {str(file)!r}", fix=_hint(path.stem, known))


def bundled() -> dict[str, Path]:
    """The recipes that come with dreamtune, by name."""
    here = Path(__file__).parent
    folders = (here / "recipes", here.parents[1] / "recipes")  # installed; in a checkout
    return {p.stem: p for folder in folders for p in sorted(folder.glob("*.toml"))}


def to_dict(obj: Any) -> dict[str, Any]:
    """Resolved settings as plain data for JSON or TOML; a mapping of tables works too."""
    if isinstance(obj, Chosen):
        return {"name": obj.name, **to_dict(obj.options)}
    if isinstance(obj, Mapping):
        return {k: _plain(v) for k, v in obj.items()}
    return {f.name: _plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
        return to_dict(value)
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def dumps(obj: Any) -> str:
    """TOML text of resolved settings; what is None ("decided at run time") is left out."""
    return "\n".join(_toml(to_dict(obj), "")).strip() + "\n"


def describe(tables: Mapping[str, Any]) -> str:
    """TOML text of resolved tables in which every key is explained, None as a comment."""
    lines: list[str] = []
    for table, obj in tables.items():
        lines += ["", f"[{table}]"]
        if isinstance(obj, Chosen):
            lines += [f"name = {_toml_value(obj.name)}"]
            obj = obj.options
        for field in dataclasses.fields(obj):
            value = _plain(getattr(obj, field.name))
            rules = _range(field.metadata, "; ")
            lines += [f"# {field.metadata['help']}{rules}"]
            lines += [f"{field.name} = {_toml_value(value)}"] if value is not None else []
            lines += [f"# {field.name} ="] if value is None else []
    return "\n".join(lines).strip() + "\n"


def _toml(tables: dict[str, Any], prefix: str) -> Iterator[str]:
    nested = {k: v for k, v in tables.items() if isinstance(v, dict)}
    for key, value in tables.items():
        if value is not None and key not in nested:
            yield f"{_key(key)} = {_toml_value(value)}"
    for key, body in nested.items():
        yield f"\n[{prefix}{_key(key)}]"
        yield from _toml(body, f"{prefix}{_key(key)}.")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(k)} = {_toml_value(v)}' for k, v in value.items())}}}"
    if isinstance(value, str):  # a JSON string is a TOML string, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value, allow_nan=False)
