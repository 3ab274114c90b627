"""Which modules of a denoiser get a LoRA: by preset, by pattern, and by block.

A preset is a name that the family knows ("attention"). A pattern is the end of a module's path,
in which * and ? match as in file names ("attn2.to_*"), or after "re:" a regular expression that
is searched in it. A block is the beginning of a path ("up_blocks.1", short "up.1", "up"), or what
kohya calls it: IN04, MID, OUT11.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dreamtune.errors import Usage, suggest

if TYPE_CHECKING:
    from torch import nn

SHORT = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


def choose(
    model: nn.Module,
    presets: Mapping[str, Sequence[str]],
    targets: Sequence[str],
    blocks: Sequence[str],
) -> list[str]:
    """Paths of the linear layers and convolutions that are meant; Usage when there is none."""
    from torch import nn

    paths = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    meant = {path for target in targets for path in _by_target(paths, presets, target)}
    if blocks:
        count = int(getattr(model, "config", {}).get("layers_per_block", 2))
        meant &= {path for block in blocks for path in _by_block(paths, block, count)}
    if not meant:
        raise Usage(
            f"{' '.join(targets)} is nowhere in {' '.join(blocks)}",
            fix="give other --targets or --blocks",
        )
    return [path for path in paths if path in meant]


def _by_target(
    paths: Sequence[str], presets: Mapping[str, Sequence[str]], target: str
) -> list[str]:
    if target.startswith("re:"):
        try:
            pattern = re.compile(target.removeprefix("re:"))
        except re.error as e:
            raise Usage(f"--targets {target} is no regular expression", why=str(e)) from None
        found = [path for path in paths if pattern.search(path)]
    else:
        ends = presets.get(target, [target])
        found = [p for p in paths if any(fnmatchcase(f".{p}", f"*.{end}") for end in ends)]
    if not found:
        raise Usage(
            f"no module of this base is called {target!r}",
            why=f"presets are {', '.join(presets)}, and modules look like {paths[len(paths) // 2]}",
            fix=suggest(target, presets),
        )
    return found


def _by_block(paths: Sequence[str], block: str, count: int) -> list[str]:
    head, dot, rest = block.partition(".")
    pattern = f"{SHORT.get(head, head)}{dot}{rest}"
    found = [p for p in paths if any(fnmatchcase(name, pattern) for name in _blocks(p, count))]
    if not found:
        names = dict.fromkeys(name for p in paths for name in list(_blocks(p, count))[1:3])
        raise Usage(
            f"this base has no block {block!r}",
            why=f"it has {', '.join(names)}",
            fix="give one of these, or a longer beginning of a module's path",
        )
    return found


def _blocks(path: str, count: int) -> Iterator[str]:
    """The names of the blocks that a module is in: kohya's, and each beginning of its path."""
    words = path.split(".")
    yield _kohya(path, count)
    for n in range(1, len(words)):
        yield ".".join(words[:n])


def _kohya(path: str, count: int) -> str:
    """IN00 to IN11, MID, OUT00 to OUT11: a count of resnets (with their attention) and samplers.

    count: resnets in a block on the way down; there is one more on the way up.
    """
    if path.startswith("mid_block."):
        return "MID"
    place = re.match(r"(down|up)_blocks\.(\d+)\.(\w+?)s\.(\d+)", path)
    if not place:
        return ""
    way, level, kind, i = place.groups()
    number = int(level) * (count + 1) + (count if kind.endswith("sampler") else int(i))
    return f"IN{number + 1:02}" if way == "down" else f"OUT{number:02}"
