"""Flag over --set over file over default; every problem at once; nothing ignored."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamtune import console, recipe, settings
from dreamtune.errors import NotFound, Usage
from dreamtune.settings import option

METHOD_FILES = {
    "lora": """
from dataclasses import dataclass
from dreamtune.settings import option
@dataclass(frozen=True)
class Options:
    rank: int = option(16, help="Rank.", low=1, high=1024)
    alpha: float | None = option(None, help="Scale.", above=0)
""",
    "embedding": """
from dataclasses import dataclass
from dreamtune.settings import option
@dataclass(frozen=True)
class Options:
    vectors: int = option(1, help="Tokens.", low=1)
""",
}


@dataclass(frozen=True)
class Train:
    steps: int = option(300, help="Steps.", low=1)
    learning_rate: float = option(1e-4, help="Rate.", above=0, alias=("--lr",))
    dropout: float = option(0.0, help="Dropout.", low=0, below=1)
    resolution: int | None = option(None, help="Pixels.", low=64, multiple=8)
    precision: str = option("fp32", help="Type.", choices=("fp32", "bf16"))
    ema: bool = option(False, help="Average.")
    targets: tuple[str, ...] = option((), help="Modules.")
    sizes: tuple[int, ...] = option((512, 768), help="Sizes.", multiple=8)
    note: str = option("", help="Note.")


@pytest.fixture(autouse=True)
def methods(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("pkg")
    (folder / "toymethods").mkdir()
    (folder / "toymethods" / "__init__.py").touch()
    for name, text in METHOD_FILES.items():
        (folder / "toymethods" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(recipe, "METHODS", "toymethods")
    recipe.method_options.cache_clear()
    yield
    recipe.method_options.cache_clear()
    for name in [n for n in sys.modules if n.startswith("toymethods")]:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        (tmp_path / "r.toml").write_text(text)
        return tmp_path / "r.toml"

    return write


def problems(**kwargs: Any) -> list[str]:
    with pytest.raises(Usage) as e:
        recipe.resolve_all({"train": Train}, method=True, **kwargs)
    assert e.value.code == 2
    return str(e.value).splitlines()


def test_the_nearest_word_wins(write: Any) -> None:
    file = write("[train]\nsteps = 2\ndropout = 0.2\nema = true\n[sample]\nanything = 1\n")
    sets, flags = ["train.steps=3", "dropout=0.3"], {"steps": "4", "note": None}
    got = recipe.resolve(Train, table="train", file=file, flags=flags, sets=sets)
    assert (got.steps, got.dropout, got.ema, got.precision) == (4, 0.3, True, "fp32")
    assert recipe.resolve(Train, table="train", file=file, sets=sets).steps == 3
    assert recipe.resolve(Train, table="train", file=file).steps == 2
    assert recipe.resolve(Train, table="train") == Train()


def test_every_problem_is_told_at_once_with_the_near_miss(write: Any) -> None:
    file = write(
        "stepps = 1\n[trian]\n[train]\nlearing_rate = 1.0\nsteps = 0\nprecision = 'fp33'\n"
        "[method]\nname = 'lora'\nrank = 'high'\n"
    )
    keys = [f"train.{f.name}" for f in dataclasses.fields(Train)]
    flags = {"resolution": "500", "vectors": "2"}
    found = problems(file=file, flags=flags, sets=["train.dropout=1", "x", "y.z=1"])
    assert sorted(found) == sorted(
        [
            "stepps: unknown key outside any table, known: method, prep, sample, train",
            "[trian]: unknown table, did you mean 'train'?",
            "train.learing_rate: unknown key, did you mean 'learning_rate'?",
            "train.steps = 0: must be at least 1",
            'train.precision = "fp33": must be fp32 or bf16',
            'method.rank = "high": must be a whole number, at least 1 and at most 1,024',
            "--resolution 500: must be at least 64 and a multiple of 8",
            "--vectors belongs to method embedding, not lora",
            "--set train.dropout=1: must be at least 0 and below 1",
            "--set x: write --set table.key=value",
            "--set y.z: unknown key, known: "
            + ", ".join(sorted([*keys, "method.alpha", "method.rank"])),
        ]
    )


@pytest.mark.parametrize(
    ("key", "toml", "message"),
    [
        ("learning_rate", "'1e-4'", "must be a number, above 0"),
        ("learning_rate", "nan", "must be a number, above 0"),
        ("learning_rate", "inf", "must be a number, above 0"),
        ("learning_rate", "0", "must be above 0"),
        ("learning_rate", "true", "must be a number, above 0"),
        ("steps", "1.0", "must be a whole number, at least 1"),
        ("steps", "true", "must be a whole number, at least 1"),
        ("steps", "-5", "must be at least 1"),
        ("ema", "1", "must be true or false"),
        ("note", "3", "must be text"),
        ("note", '"a\\u001b[31m"', "has control characters"),
        ("targets", "'q'", "must be a list, each item text"),
        ("targets", "['q', 1]", "must be text"),
        ("sizes", "[512, 500]", "must be a multiple of 8"),
    ],
)
def test_a_wrong_value_in_a_file(write: Any, key: str, toml: str, message: str) -> None:
    (line,) = problems(file=write(f"[train]\n{key} = {toml}\n"))
    assert line.startswith(f"train.{key} = ") and line.endswith(f": {message}")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "12", 12),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", "1", 1.0),
        ("ema", "true", True),
        ("note", "123", "123"),
        ("note", "a = b, [c]", "a = b, [c]"),
        ("targets", "to_q, to_k", ("to_q", "to_k")),
        ("targets", '["a,b", "c"]', ("a,b", "c")),
        ("sizes", "8,16", (8, 16)),
        ("sizes", "[8, 16]", (8, 16)),
        ("resolution", "512", 512),
    ],
)
def test_text_is_read_as_its_field_asks(key: str, text: str, value: object) -> None:
    for given_by in ({"sets": [f"train.{key}={text}"]}, {"flags": {key: text}}):
        got = getattr(recipe.resolve(Train, table="train", **given_by), key)
        assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("steps", "1.5"),
        ("steps", "x"),
        ("steps", ""),
        ("learning_rate", "1,0"),
        ("learning_rate", "nan"),
        ("ema", "maybe"),
        ("sizes", "8,x"),
    ],
)
def test_text_that_is_no_value_is_refused(key: str, text: str) -> None:
    (line,) = problems(sets=[f"{key}={text}"])
    assert line.startswith(f"--set {key}={text}: must be ")


def test_a_flag_given_several_times_is_a_list() -> None:
    flags = {"targets": ["a,b", "c"], "sizes": ["8,16", "24"]}
    got = recipe.resolve(Train, table="train", flags=flags)
    assert got.targets == ("a,b", "c") and got.sizes == (8, 16, 24)


def test_the_method_comes_from_flag_set_file_or_default(write: Any) -> None:
    file = write("[method]\nname = 'embedding'\nvectors = 3\n")
    schemas = {"train": Train}
    got = recipe.resolve_all(schemas, method=True, file=file)["method"]
    assert (got.name, got.options.vectors) == ("embedding", 3)
    assert recipe.resolve_all(schemas, method=True)["method"].name == "lora"
    by_set = recipe.resolve_all(schemas, method=True, sets=["method.name=embedding"])
    assert by_set["method"].name == "embedding"
    by_flag = recipe.resolve_all(schemas, method=True, flags={"method": "lora", "rank": "4"})
    assert by_flag["method"].options.rank == 4
    assert problems(file=file, flags={"method": "lora"}) == [
        "method.vectors: unknown key, known: alpha, rank"
    ]


def test_an_unknown_method_is_one_line_whatever_else_is_asked(write: Any) -> None:
    assert problems(flags={"method": "lorra", "rank": "0"}, sets=["method.rank=3"]) == [
        "unknown method 'lorra', did you mean 'lora'?"
    ]
    assert problems(file=write("[method]\nname = 3\n")) == [
        "unknown method 3, known: embedding, lora"
    ]


def test_a_check_across_fields_is_told_with_the_rest() -> None:
    @dataclass(frozen=True)
    class Pair:
        low: int = option(1, help="Low.")
        high: int = option(2, help="High.")

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise Usage(f"low {self.low} is above high {self.high}")

    with pytest.raises(Usage, match=r"^\[pair\] low 5 is above high 2$"):
        recipe.resolve(Pair, table="pair", flags={"low": "5"})


def test_files_that_are_no_recipes(tmp_path: Path, write: Any) -> None:
    with pytest.raises(Usage, match=r"r\.toml is not valid TOML: .*line 2"):
        recipe.load(write("[train]\nsteps = = 1\n"))
    (tmp_path / "latin.toml").write_bytes(b"[train]\nnote = '\xe9'\n")
    with pytest.raises(Usage, match="is not valid TOML"):
        recipe.load(tmp_path / "latin.toml")
    with pytest.raises(NotFound, match=r"no recipe '.*nothing.toml'"):
        recipe.load(tmp_path / "nothing.toml")
    (tmp_path / "closed.toml").mkdir()
    with pytest.raises(NotFound):
        recipe.load(tmp_path / "closed.toml")


def test_a_bundled_recipe_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quick.toml").write_text("[train]\nsteps = 7\n")
    monkeypatch.setattr(recipe, "__file__", str(tmp_path / "recipe.py"))
    assert recipe.resolve(Train, table="train", file="quick").steps == 7
    with pytest.raises(NotFound, match="no recipe 'quik'; did you mean 'quick'"):
        recipe.resolve(Train, table="train", file="quik")


TEXTS = st.text().filter(lambda t: console.clean(t) == t)
TRAINS = st.builds(
    Train,
    steps=st.integers(1, 10**12),
    learning_rate=st.floats(1e-300, 1e300),
    dropout=st.floats(0, 1, exclude_max=True),
    resolution=st.none() | st.integers(8, 10_000).map(lambda n: n * 8),
    precision=st.sampled_from(["fp32", "bf16"]),
    ema=st.booleans(),
    targets=st.lists(TEXTS, max_size=3).map(tuple),
    sizes=st.lists(st.integers(-9, 9).map(lambda n: n * 8), max_size=3).map(tuple),
    note=TEXTS,
)


@given(TRAINS, st.integers(1, 1024))
def test_what_is_dumped_resolves_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, train: Train, rank: int
) -> None:
    options = recipe.method_options()["lora"](rank=rank)
    tables = {"train": train, "method": recipe.Chosen("lora", options)}
    file = tmp_path_factory.getbasetemp() / "dumped.toml"
    for text in (recipe.dumps(tables), recipe.describe(tables)):
        file.write_text(text, encoding="utf-8")
        assert recipe.resolve_all({"train": Train}, method=True, file=file) == tables


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
NESTED = st.recursive(
    PLAIN.filter(lambda v: v is not None),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, NESTED, max_size=4))
def test_any_recipe_of_an_artifact_can_be_dumped(data: dict[str, Any]) -> None:
    assert tomllib.loads(recipe.dumps(data)) == data


def test_describe_explains_every_key() -> None:
    text = recipe.describe({"train": Train()})
    assert "# Rate.; above 0\nlearning_rate = 0.0001\n" in text
    assert "# Pixels.; at least 64 and a multiple of 8\n# resolution =\n" in text


def test_a_field_of_another_type_is_a_programmer_s_mistake() -> None:
    @dataclass(frozen=True)
    class Odd:
        when: bytes = option(b"", help="?")

    with pytest.raises(TypeError, match="bytes"):
        recipe.resolve(Odd, table="odd", flags={"when": "x"})


@pytest.mark.parametrize("identifier", ["sks", "<cat-toy>", "[a b]", "[]", "a [V01]"])
def test_an_identifier_that_training_would_not_see_is_refused(identifier: str) -> None:
    with pytest.raises(Usage, match=r"brackets.*\[V01\]"):
        recipe.resolve(settings.Prep, table="prep", flags={"identifier": identifier})
