"""prep against the bare sum of its parts, and its memory as folders grow.

    python bench/prep_speed.py ../shared/data/dreambooth                  # 1,000 photos, time
    python bench/prep_speed.py ../shared/data/dreambooth --memory         # 1,000 and 10,000, memory

The folder's photos are cropped and re-encoded until there are enough different ones, in a
temporary folder. The bare sum is one process that decodes every photo and then runs the image
tower over all of them, on all cores, after its imports: nothing is checked, compared, cleaned or
written. prep is the whole command, imports and all. They take turns; medians are compared, of
time and of processor time, which is the one to read on a machine that has other work.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

ROUNDS = 3


def corpus(source: Path, count: int, folder: Path) -> None:
    """`count` different photos of 640 px from the photos below `source`."""
    files = sorted(source.glob("*/*.jpg"))
    jobs = [(files[n % len(files)], n, folder / f"{n:05d}.jpg") for n in range(count)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(altered, jobs, chunksize=32))


def altered(job: tuple[Path, int, Path]) -> None:
    """A crop of one photo, at 640 px."""
    source, number, target = job
    rng = np.random.default_rng(number)
    with Image.open(source) as image:
        width = round(min(image.size) * rng.uniform(0.6, 1.0))
        left, top = (int(rng.integers(0, length - width + 1)) for length in image.size)
        view = image.resize((640, 640), box=(left, top, left + width, top + width))
        view.save(target, quality=90)


def decoded(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))


def processor() -> float:
    """Processor seconds of this process and of its finished children."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def bare(folder: Path) -> dict[str, float]:
    """Seconds of decoding and of the tower, each on all cores, and processor seconds of both."""
    import torch

    from dreamtune.data import encoder
    from dreamtune.data.tower import Tower

    tower = Tower.read(encoder.ASSETS / encoder.WEIGHTS)
    files = sorted(folder.iterdir())
    cores = len(os.sched_getaffinity(0))
    before = processor()
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(decoded, files[:cores]))  # the workers' start is not decoding
        started = time.monotonic()
        pixels = np.stack(list(pool.map(decoded, files, chunksize=16)))
        decoding = time.monotonic() - started
    started = time.monotonic()
    batches = [torch.from_numpy(pixels[i : i + 4]) for i in range(0, len(pixels), 4)]
    with ThreadPoolExecutor(cores, initializer=lambda: torch.set_num_threads(1)) as threads:
        for cells in threads.map(tower, batches):
            cells.mean((1, 2))
    tower_seconds = time.monotonic() - started
    return {"decoding": decoding, "tower": tower_seconds, "cpu": processor() - before}


def prep(folder: Path, store: Path) -> dict[str, float]:
    """Seconds, and the largest resident memory of the command and of its largest worker, in MiB."""
    command = [sys.executable, "-m", "dreamtune", "-q", "prep", str(folder)]
    options = ["--class", "thing", "--kind", "subject", "--json", "--store", str(store)]
    started, before = time.monotonic(), processor()
    said = store.with_suffix(".json")  # a pipe that nobody reads fills up and stops the writer
    with said.open("wb") as stdout:
        process = subprocess.Popen([*command, *options], stdout=stdout)
    peaks = {"main": 0.0, "workers": 0.0, "together": 0.0}
    while process.poll() is None:
        sizes = [_resident(pid) for pid in _family(process.pid)]
        if sizes:
            peaks["main"] = max(peaks["main"], sizes[0])
            peaks["workers"] = max(peaks["workers"], *sizes[1:], 0.0)
            peaks["together"] = max(peaks["together"], sum(sizes))
        time.sleep(0.2)
    seconds = time.monotonic() - started
    assert process.returncode == 0
    kept = json.loads(said.read_text())["kept"]
    return {"seconds": seconds, "cpu": processor() - before, "kept": kept, **peaks}


def _family(pid: int) -> list[int]:
    """A process and its children, whichever of its threads started them."""
    children: list[str] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += (thread / "children").read_text().split()
    except OSError:
        return []
    return [pid, *(child for word in children for child in _family(int(word)))]


def _resident(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def compare_times(source: Path, count: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "photos")
        folder.mkdir()
        corpus(source, count, folder)
        ratios: dict[str, list[float]] = {"time": [], "processor time": []}
        for turn in range(ROUNDS):
            parts = bare(folder)
            whole = prep(folder, Path(scratch, f"store{turn}"))
            total = parts["decoding"] + parts["tower"]
            ratios["time"].append(whole["seconds"] / total)
            ratios["processor time"].append(whole["cpu"] / parts["cpu"])
            words = f"decoding {parts['decoding']:.1f} s + tower {parts['tower']:.1f} s"
            used = f"processor {whole['cpu']:.1f} s against {parts['cpu']:.1f} s"
            print(f"turn {turn + 1}: {words}; prep {whole['seconds']:.1f} s; {used}", flush=True)
        for kind, values in ratios.items():
            print(f"{count} photos: {statistics.median(values):.2f} times the bare sum in {kind}")


def compare_memory(source: Path, counts: list[int]) -> None:
    for count in counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "photos")
            folder.mkdir()
            corpus(source, count, folder)
            found = prep(folder, Path(scratch, "store"))
            words = ", ".join(
                f"{key} {found[key]:.0f} MiB" for key in ("main", "workers", "together")
            )
            print(
                f"{count} photos: {found['seconds']:.1f} s; {words}; {found['kept']} kept",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--memory", action="store_true")
    asked = parser.parse_args()
    if asked.memory:
        compare_memory(asked.folder, [asked.count, 10 * asked.count])
    else:
        compare_times(asked.folder, asked.count)


if __name__ == "__main__":
    main()
