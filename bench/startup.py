"""How fast the command line answers, beside `python -c "import typer"`.

    python -m bench.startup [--repeats 7]

Alternated, medians; the goal is 2.5 for help and for a typo in a flag or a recipe key.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {
    "--help": ["--help"],
    "train --help": ["train", "--help"],
    "typo in a flag": ["train", "--rnak", "3"],
    "typo in a recipe": ["train", "--recipe", "typo.toml"],
}


def seconds(code: str, args: list[str], folder: Path) -> float:
    """Wall time of one fresh interpreter."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *args], cwd=folder, capture_output=True, check=False
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "typo.toml").write_text("[train]\nlearing_rate = 1e-4\n")
        for label, args in CASES.items():
            pairs = [
                (
                    seconds("import typer", [], folder),
                    seconds("from dreamtune.cli import main; main()", args, folder),
                )
                for _ in range(repeats)
            ]
            bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"{label:18} {ours:.2f} s, {ours / bare:.2f} times `import typer`")


if __name__ == "__main__":
    main()
