"""Pictures, whole process and loop: `dreamtune sample` against a plain loop over the pipeline.

    python -m bench.sample [--prompts 8] [--each 4] [--repeats 3] [--threads 2]

All make the same pictures with the built-in base: same prompts, seeds, steps, guidance, scheduler
and size. The peer is what diffusers' documentation shows, once with a call for each picture and
once with `num_images_per_prompt`. They run in turns, so that a machine's mood hits all. A table
goes to stdout, every number into the JSON file that its last line names.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dreamtune
from bench.process import Cost, circumstances, measure, threads

BASE = Path(dreamtune.__file__).parent / "assets" / "mini"
THINGS = ("cat", "red car", "house", "mug", "apple", "dog", "clock", "fish")
PLACES = ("in the snow", "on the beach", "on a red background", "in a forest")
CALLS = {"a call a picture": [], "num_images_per_prompt": ["--together"]}


def main() -> None:
    ask = _arguments()
    sides: dict[str, list[tuple[Cost, float]]] = {name: [] for name in ("dreamtune", *CALLS)}
    with tempfile.TemporaryDirectory(prefix="dreamtune-bench-") as name:
        work = Path(name)
        lines = [f"a {THINGS[i % 8]} {PLACES[i // 8 % 4]}" for i in range(ask.prompts)]
        (work / "prompts.txt").write_text("\n".join(lines) + "\n")
        for turn in range(ask.repeats):
            sides["dreamtune"].append(run_ours(work, turn, ask))
            for call in CALLS:
                sides[call].append(run_theirs(work, turn, call, ask))
            for side, runs in sides.items():
                _tell(f"run {turn + 1}: {side} {runs[-1][0].wall:.1f} s, loop {runs[-1][1]:.1f} s")
        difference = furthest(work)
    facts = {"arguments": vars(ask), "furthest": difference, **circumstances()}
    report(sides, facts, ask.out)


def run_ours(work: Path, turn: int, ask: argparse.Namespace) -> tuple[Cost, float]:
    """The command in a store of its own, and the seconds of its pictures, saved."""
    command = [sys.executable, "-m", "dreamtune", "--quiet", "sample", "--json"]
    command += [f"--store={work / f'ours-{turn}'}", f"--prompt-file={work / 'prompts.txt'}"]
    command += ["--with=none", f"--count={ask.each}", f"--steps={ask.steps}", "--precision=fp32"]
    cost = measure([*command, "--device=cpu"], threads(ask.threads))
    run = json.loads((Path(json.loads(cost.output)["path"]) / "run.json").read_text())
    return cost, float(run["seconds"]["pictures"])


def run_theirs(work: Path, turn: int, call: str, ask: argparse.Namespace) -> tuple[Cost, float]:
    """The loop in a process of its own, and the seconds of the loop."""
    out = work / f"theirs-{turn}-{len(CALLS[call])}"
    out.mkdir()
    command = [sys.executable, "-m", "bench.pipeline_loop", str(BASE), str(work / "prompts.txt")]
    command += [str(out), f"--each={ask.each}", f"--steps={ask.steps}", *CALLS[call]]
    cost = measure(command, threads(ask.threads))
    return cost, float(cost.output)


def furthest(work: Path) -> int:
    """The largest difference of a pixel between the same picture of two sides, of 255."""
    ours = sorted(work.glob("ours-0/samples/*/v001/0*.png"))
    theirs = sorted((work / "theirs-0-0").glob("*.png"))
    assert [p.name for p in ours] == [p.name for p in theirs], "other pictures"
    pairs = [
        [np.asarray(Image.open(p)).astype(int) for p in two]
        for two in zip(ours, theirs, strict=True)
    ]
    return max(int(np.abs(a - b).max()) for a, b in pairs)


def report(sides: dict[str, list[tuple[Cost, float]]], facts: dict[str, Any], out: Path) -> None:
    """The table, and the file with every number."""
    result: dict[str, Any] = {"circumstances": facts, "sides": {}}
    print(f"{'':24}{'wall s':>8}{'loop s':>8}{'CPU s':>8}{'MiB':>7}  ratio of wall and loop")
    ours = sides["dreamtune"]
    for name, runs in sides.items():
        wall, loop = _median([c.wall for c, _ in runs]), _median([s for _, s in runs])
        cpu, memory = _median([c.cpu for c, _ in runs]), _median([c.memory for c, _ in runs])
        ratios = [
            _median([a[0].wall / b[0].wall for a, b in zip(ours, runs, strict=True)]),
            _median([a[1] / b[1] for a, b in zip(ours, runs, strict=True)]),
        ]
        shown = "" if name == "dreamtune" else f"  {ratios[0]:.2f}  {ratios[1]:.2f}"
        print(f"{name:24}{wall:8.1f}{loop:8.1f}{cpu:8.1f}{memory:7.0f}{shown}")
        result["sides"][name] = {
            "runs": [
                {"wall": c.wall, "loop": s, "cpu": c.cpu, "memory": c.memory} for c, s in runs
            ],
            "dreamtune's time over its": {"wall": ratios[0], "loop": ratios[1]},
        }
    print(f"pictures differ by {facts['furthest']}/255 at most")
    out.write_text(json.dumps(result, indent=2, default=str) + "\n")
    print(out)


def _median(numbers: Sequence[float]) -> float:
    return statistics.median(numbers)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.sample", description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--each", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench-sample.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
