"""LoRA training, whole process: `dreamtune train` against diffusers' train_dreambooth_lora.py.

    python -m bench.train [--peer diffusers/examples] [--size small] [--steps 300]
        [--repeats 3] [--threads 2]

Both get the same base folder, photos, size, rank, target modules, batch, precision and threads, and
start without any cache of their own. They run in turns, so that a machine's mood hits both. A
table goes to stdout, everything else into the JSON file that its last line names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import base, photos
from bench.process import Cost, circumstances, measure, threads

SCRIPT = "train_dreambooth_lora.py"
RANK, RATE = 16, 1e-4
MARKS = {"first step": b"***** Running training *****", "last step": b"Steps: 100%"}
PHASES = ("import", "load", "encode", "rehearse", "steps", "save")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What both sides are given."""

    work: Path
    size: base.Size
    steps: int
    environment: dict[str, str]

    @property
    def base(self) -> Path:
        return self.work / "base"

    @property
    def photos(self) -> Path:
        return self.work / "photos"

    @property
    def store(self) -> Path:
        return self.work / "store"


def main() -> None:
    ask = _arguments()
    script = find_script(ask.peer) if ask.peer else None
    with tempfile.TemporaryDirectory(prefix="dreamtune-bench-") as work:
        setting = Setting(Path(work), base.SIZES[ask.size], ask.steps, threads(ask.threads))
        count = photos.gather(setting.photos, ask.photos, setting.size.batch)
        base.build(setting.base, setting.size)
        prepared = prepare(setting)
        ours, theirs = [], []
        for turn in range(ask.repeats):
            ours.append(run_ours(setting, turn))
            _tell(f"run {turn + 1}: dreamtune {ours[-1].wall:.1f} s")
            if script:
                theirs.append(run_theirs(setting, turn, script))
                _tell(f"run {turn + 1}: {SCRIPT} {theirs[-1].wall:.1f} s")
    facts = {"arguments": vars(ask), "photos": count, "prep": prepared.wall, **circumstances()}
    report(ours, theirs, facts, ask.out)


def find_script(peer: Path) -> Path:
    """The peer's script in, or below, the folder given."""
    for path in (peer, peer / SCRIPT, peer / "dreambooth" / SCRIPT):
        if path.is_file():
            return path
    raise SystemExit(f"{peer} has no {SCRIPT}: give diffusers' examples folder")


def prepare(setting: Setting) -> Cost:
    """The photos as a prep artifact; the similarity filter is off, so that both see all."""
    command = [*_dreamtune("prep", setting.store), str(setting.photos)]
    return measure([*command, "--class", "dog", "--threshold", "0"], setting.environment)


def run_ours(setting: Setting, turn: int) -> Cost:
    """`dreamtune train` in a copy of the store as `prep` left it: nothing is cached."""
    store = setting.work / f"store-{turn}"
    shutil.copytree(setting.store, store)
    command = [
        *_dreamtune("train", store),
        "--json",
        "--method=lora",
        f"--base={setting.base}",
        f"--steps={setting.steps}",
        f"--batch={setting.size.batch}",
        f"--rank={RANK}",
        f"--learning-rate={RATE}",
        f"--resolution={setting.size.resolution}",
        "--precision=fp32",
    ]
    return measure(command, setting.environment)


def run_theirs(setting: Setting, turn: int, script: Path) -> Cost:
    """The peer with the flags of its README; it saves no state before step 500 either."""
    command = [
        sys.executable,
        str(script),
        f"--pretrained_model_name_or_path={setting.base}",
        f"--instance_data_dir={setting.photos}",
        "--instance_prompt=a photo of sks dog",
        f"--output_dir={setting.work / f'theirs-{turn}'}",
        f"--max_train_steps={setting.steps}",
        f"--train_batch_size={setting.size.batch}",
        f"--rank={RANK}",
        f"--learning_rate={RATE}",
        f"--resolution={setting.size.resolution}",
        "--lr_scheduler=cosine",
        "--lr_warmup_steps=0",
        "--mixed_precision=no",
        "--seed=0",
    ]
    return measure(command, setting.environment, MARKS)


def phases_of_ours(cost: Cost) -> dict[str, float]:
    """Seconds by phase; "start" is what the run's own clock does not see, mostly Python."""
    seconds = json.loads(cost.output)["run"]["seconds"]
    known = {name: float(seconds[name]) for name in PHASES}
    return {"start": cost.wall - sum(known.values()), **known}


def phases_of_theirs(cost: Cost) -> dict[str, float]:
    """Seconds until training is announced, of the steps, and of saving and loading back."""
    first, last = cost.marks["first step"], cost.marks["last step"]
    return {"before": first, "steps": last - first, "after": cost.wall - last}


def report(ours: Sequence[Cost], theirs: Sequence[Cost], facts: dict[str, Any], out: Path) -> None:
    """The table, and the file with every number."""
    sides: dict[str, Any] = {"dreamtune": (ours, phases_of_ours)}
    if theirs:
        sides["diffusers script"] = (theirs, phases_of_theirs)
    result: dict[str, Any] = {"circumstances": facts, "sides": {}}
    print(
        f"{'median of ' + str(len(ours)):18}{'wall s':>8}{'CPU s':>8}{'MiB':>7}  seconds by phase"
    )
    for name, (costs, phases_of) in sides.items():
        rows = [phases_of(cost) for cost in costs]
        phases = {k: statistics.median(row[k] for row in rows) for k in rows[0]}
        middle = {k: _median(costs, k) for k in ("wall", "cpu", "memory")}
        parts = ", ".join(f"{k} {v:.1f}" for k, v in phases.items())
        print(f"{name:18}{middle['wall']:8.1f}{middle['cpu']:8.1f}{middle['memory']:7.0f}  {parts}")
        runs = [{"wall": c.wall, "cpu": c.cpu, "memory": c.memory} for c in costs]
        result["sides"][name] = {**middle, "phases": phases, "runs": runs}
    if theirs:
        ratio = {k: _median(ours, k) / _median(theirs, k) for k in ("wall", "cpu", "memory")}
        print(f"{'ratio':18}{ratio['wall']:8.2f}{ratio['cpu']:8.2f}{ratio['memory']:7.2f}")
        result["ratio"] = ratio
    out.write_text(json.dumps(result, indent=2, default=str) + "\n")
    print(out)


def _median(costs: Sequence[Cost], name: str) -> float:
    return statistics.median(getattr(cost, name) for cost in costs)


def _dreamtune(command: str, store: Path) -> list[str]:
    return [sys.executable, "-m", "dreamtune", "--quiet", command, f"--store={store}"]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", type=Path, help="diffusers' examples folder [ours alone]")
    parser.add_argument("--size", choices=base.SIZES, default="small")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--photos", type=Path, help="[DREAMTUNE_PHOTOS, a shared dog, or drawn]")
    parser.add_argument("--out", type=Path, default=Path("bench-train.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
