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
from dreamtune.formats import ldm

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
        names = ldm.unet_names(ldm.Blocks.of(getattr(model, "config", {})))
        meant &= {path for block in blocks for path in _by_block(paths, block, names)}
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


def _by_block(paths: Sequence[str], block: str, names: Mapping[str, str]) -> list[str]:
    """names: of ldm.unet_names."""
    head, dot, rest = block.partition(".")
    pattern = f"{SHORT.get(head, head)}{dot}{rest}"
    found = [p for p in paths if any(fnmatchcase(name, pattern) for name in _blocks(p, names))]
    if not found:
        known = dict.fromkeys(name for p in paths for name in list(_blocks(p, names))[1:3])
        raise Usage(
            f"this base has no block {block!r}",
            why=f"it has {', '.join(known)}",
            fix="give one of these, or a longer beginning of a module's path",
        )
    return found


def _blocks(path: str, names: Mapping[str, str]) -> Iterator[str]:
    """The names of the blocks that a module is in: kohya's, and each beginning of its path."""
    words = path.split(".")
    yield _kohya(ldm.renamed(path, names) or "")
    for n in range(1, len(words)):
        yield ".".join(words[:n])


def _kohya(path: str) -> str:
    """IN00 to IN11, MID, OUT00 to OUT11, of a path as Stability's code has it; else nothing."""
    way, _, rest = path.partition(".")
    if way == "middle_block":
        return "MID"
    short = {"input_blocks": "IN", "output_blocks": "OUT"}.get(way)
    return f"{short}{int(rest.partition('.')[0]):02}" if short else ""
