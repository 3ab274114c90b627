"""Our own parts alone: what commands import, and what an update costs beside the model itself.

    python -m bench.parts [--steps 30] [--threads 2]

An update is compared with its floor: forward and backward of the same UNet with the same LoRA
layers on one fixed batch. What lies between is ours: batches, noise, clipping, optimizer. CPU
seconds are given beside wall seconds since they change less when a machine is busy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.process import measure, threads

BATCH = 4
IMPORTS = {
    "python": "pass",
    "dreamtune --help": "from dreamtune import cli; cli.run(['--help'])",
    "torch": "import torch",
    "dreamtune train": "from dreamtune.stages import training; training.import_libraries()",
    "dreamtune sample": "import dreamtune.sampling; from dreamtune.families import sd",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.parts", description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    ask = parser.parse_args()
    print(f"{'imports, median of 3':28}{'wall s':>8}{'CPU s':>8}")
    for name, code in IMPORTS.items():
        runs = [measure([sys.executable, "-c", code], threads(ask.threads)) for _ in range(3)]
        _row(name, ((run.wall, run.cpu) for run in runs))
    print(f"{'an update, median':28}{'wall s':>8}{'CPU s':>8}")
    for name, times in updates(ask.steps, ask.threads).items():
        _row(name, times)


def updates(steps: int, count: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each update, of the whole loop and of the model alone."""
    import torch
    from accelerate import Accelerator

    from bench import base
    from dreamtune import families, loop, losses
    from dreamtune.data.batches import SUBJECT, Order, Table, make_batch
    from dreamtune.methods import Concept, lora
    from dreamtune.objective import Objective

    torch.set_num_threads(count)
    with tempfile.TemporaryDirectory() as folder:
        family = families.load(
            str(base.build(Path(folder) / "base", base.SIZES["small"])), torch.float32
        )
    method = lora.Method(lora.Options())
    method.attach(family, [Concept("[V01]", "dog", "dog")], seed=0)
    parameters = [p for group in method.groups() for p in group.parameters.values()]
    optimizer = torch.optim.AdamW([{"params": parameters, "peak": 1e-4, "start": 0}], fused=True)
    objective = Objective(family, method.live(), losses.l2).train()

    size = base.SIZES["small"]
    side = size.resolution // 8
    image = {name: torch.rand(4, 4, side, side) for name in ("mean", "std")}
    text = {"text": torch.rand(1, family.text[0].length, size.text_width)}
    table = Table(
        [{**image, "meta": torch.rand(4, 6)}] * 4, [text], "text", {SUBJECT: [0] * 4}, [1.0] * 4
    )
    shares = {SUBJECT: 1 / BATCH}
    order = Order([range(4)], BATCH, 4, 0)
    loops = loop.train(
        objective,
        optimizer,
        lambda step: [make_batch(table, order.picks(step), 0, shares)],
        accelerator=Accelerator(cpu=True),
        rate=lambda step: 1.0,
        steps=range(steps + 1),
        seed=0,
        clip=1.0,
    )
    batch = make_batch(table, order.picks(0), 0, shares)

    def model() -> None:
        objective(batch).sum().backward()
        optimizer.zero_grad(set_to_none=True)

    alone, whole = [], []
    for _ in range(steps + 1):  # in turns; the first of each warms up
        alone.append(_timed(model))
        whole.append(_timed(lambda: next(loops)))
    return {"model forward and backward": alone[1:], "dreamtune's loop": whole[1:]}


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _row(name: str, times: Iterable[tuple[float, float]]) -> None:
    wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{name:28}{wall:8.3f}{cpu:8.3f}")


if __name__ == "__main__":
    main()
