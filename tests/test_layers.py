"""The architecture (DESIGN.md, section 2), stated over the syntax tree.

Dependencies go down the layers, never up; an import inside a function or for types counts too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dreamtune

ROOT = Path(dreamtune.__file__).parent
LAYERS = [
    {"", "errors", "plugins", "console", "settings", "recipe", "flags", "fsops", "artifacts"}
    | {"floors", "processes", "journal", "names", "store", "surroundings"},
    {"data", "formats", "diffusion", "losses", "draws", "checkpoints", "assets"}
    | {"optimizers", "schedules", "ema", "weightings", "perceptual"},
    {"bases"},
    {"families"},
    {"methods"},
    {"objective", "loop", "metrics", "sampling", "devices"},
    {"stages"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "open_clip",
         "numpy", "PIL", "rich", "timm", "safetensors", "huggingface_hub", "pydantic"}  # fmt: skip
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): p
    for p in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def top(module: str) -> str:
    return module.partition(".")[0]


def layer(module: str) -> int:
    found = [i for i, names in enumerate(LAYERS) if top(module) in names]
    assert found, f"{module} has no layer: add it to LAYERS and to DESIGN.md"
    return found[0]


def resolve(module: str, node: ast.AST) -> Iterator[str]:
    """Absolute names that an import statement of `module` imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = ["dreamtune", *filter(None, module.split("."))]
            if MODULES[module].name != "__init__.py":
                package.pop()
            parts = package[: len(package) - node.level + 1]
            base = ".".join([*parts, *filter(None, [node.module])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def ours(name: str) -> str | None:
    """Our module that an absolute name lies in: "families.sd" for dreamtune.families.sd.Sd."""
    if name != "dreamtune" and not name.startswith("dreamtune."):
        return None
    inner = name.removeprefix("dreamtune").lstrip(".")
    while inner not in MODULES:
        inner = inner.rpartition(".")[0]
    return inner


def imports(module: str) -> set[str]:
    nodes = ast.walk(TREES[module])
    return {name for node in nodes for name in resolve(module, node)}


def imports_at_load(module: str) -> set[str]:
    """What importing the module imports: not in functions, not for types."""
    found: set[str] = set()

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            found.update(resolve(module, node))
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                visit(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for part in ("body", "orelse", "finalbody"):
                    visit(getattr(node, part, []))
                for handler in getattr(node, "handlers", []):
                    visit(handler.body)

    visit(TREES[module].body)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_go_down(module: str) -> None:
    used = {target for name in imports(module) if (target := ours(name)) is not None}
    up = {target for target in used if layer(target) > layer(module)}
    assert not up, f"{module or 'dreamtune'} (layer {layer(module)}) imports {sorted(up)}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("families.")])
def test_families_import_no_family(module: str) -> None:
    used = {target for name in imports(module) if (target := ours(name)) is not None}
    assert not {
        t for t in used if t.startswith("families.") and not t.split(".")[1].startswith("_")
    }


LIGHT = [m for m in MODULES if layer(m) in (0, 7) or top(m) in ("commands", "methods")]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    assert not {name for name in imports_at_load(module) if top(name) in HEAVY}


def test_loading_every_light_module_loads_nothing_heavy() -> None:
    names = ", ".join(f"dreamtune.{m}" if m else "dreamtune" for m in LIGHT)
    code = f"import sys, {names}\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == ""


# What only one place may do.

WRITERS = {"write_text", "write_bytes", "mkdir", "touch", "unlink", "rmdir", "symlink_to",
           "hardlink_to", "chmod"}  # fmt: skip
OS_WRITERS = {"replace", "rename", "remove", "unlink", "mkdir", "makedirs", "rmdir", "link",
              "symlink", "chmod", "truncate"}  # fmt: skip
SHUTIL_WRITERS = {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "rmtree"}


def calls(module: str) -> Iterator[tuple[str, str, ast.Call]]:
    """(object, function, call): ("os", "replace", …), ("", "print", …)."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value), node.func.attr, node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield "", node.func.id, node


def opens_to_write(owner: str, call: ast.Call) -> bool:
    """open(path, mode) or path.open(mode) with a mode that can change the file."""
    modes = [*call.args[0 if owner else 1 :][:1], *(k.value for k in call.keywords)]
    texts = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
    return any(re.fullmatch(r"[rbt]*[wax+][bt+]*", text) for text in texts)


def writes(module: str) -> list[str]:
    return [
        ast.unparse(call)
        for owner, name, call in calls(module)
        if (owner not in ("", "fsops") and name in WRITERS)
        or (owner == "os" and name in OS_WRITERS)
        or (owner == "shutil" and name in SHUTIL_WRITERS)
        or (name == "open" and opens_to_write(owner, call))
    ]


def test_only_fsops_writes() -> None:
    assert writes("fsops"), "the test must see writing where there is some"
    assert {m: found for m in MODULES if m != "fsops" and (found := writes(m))} == {}


def test_only_console_and_commands_print() -> None:
    def prints(module: str) -> list[str]:
        streams = [
            ast.unparse(n)
            for n in ast.walk(TREES[module])
            if isinstance(n, ast.Attribute) and ast.unparse(n) in ("sys.stdout", "sys.stderr")
        ]
        said = [
            ast.unparse(c)
            for owner, name, c in calls(module)
            if (owner, name) in {("", "print"), ("typer", "echo"), ("typer", "secho")}
        ]
        rich = [name for name in imports(module) if top(name) == "rich"]
        return streams + said + rich

    assert prints("console")
    free = {m for m in MODULES if top(m) not in ("console", "commands")}
    assert {m: found for m in sorted(free) if (found := prints(m))} == {}


def test_only_recipe_reads_toml() -> None:
    assert {m for m in MODULES if any(top(n) in ("tomllib", "tomli") for n in imports(m))} == {
        "recipe"
    }


def test_only_stages_and_commands_know_artifacts() -> None:
    store = {"artifacts", "journal", "store"}
    using = {m for m in MODULES if any(ours(n) in store for n in imports(m))}
    assert {top(m) for m in using} - store == {"stages", "commands"}


def test_nothing_asks_which_family_it_is_outside_families() -> None:
    def asks(module: str) -> list[str]:
        compared = (n for n in ast.walk(TREES[module]) if isinstance(n, ast.Compare))
        family = {p.stem for p in (ROOT / "families").glob("[!_]*.py")}
        return [
            ast.unparse(c)
            for c in compared
            if any(isinstance(x, ast.Constant) and x.value in family for x in ast.walk(c))
            and "family" in ast.unparse(c)
        ]

    outside = [m for m in MODULES if top(m) != "families"]
    assert {m: found for m in outside if (found := asks(m))} == {}


def test_the_rules_catch_what_they_forbid() -> None:
    """Each rule is shown a breach, so that none passes for want of looking."""
    TREES["probe"] = ast.parse(
        "import typing\n"
        "if typing.TYPE_CHECKING:\n    import torch\nelse:\n    import json\n"
        "try:\n    import numpy\nexcept ImportError:\n    import PIL\n"
        "def f():\n    from .stages import train\n    import rich\n"
        "    open('x', 'w'); path.write_text('x'); os.replace(a, b); path.open('r+b')\n"
        "    fsops.write_text(p, 'x'); text.replace('a', 'b'); open('x', 'rb'); open('wax')\n"
    )
    MODULES["probe"] = ROOT / "probe.py"
    try:
        assert imports_at_load("probe") == {"typing", "json", "numpy", "PIL"}
        assert {ours(n) for n in imports("probe")} >= {"stages.train"}
        assert len(writes("probe")) == 4
    finally:
        del TREES["probe"], MODULES["probe"]
