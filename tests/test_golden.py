"""What older releases left behind stays good: their stores lie in golden/, one folder a release.

Made by that release: photos prepared, a LoRA trained and tagged, and a run cut off after update 2.
Until 0.1.0 is out, its folder may be made anew when a format changes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dreamtune.store import Store
from tests import forked

RELEASES = sorted((Path(__file__).parent / "golden").iterdir())
TRAIN = ["train", "--base", "tiny:sd", "--steps", "4", "--batch", "1", "--variants", "1"]
TRAIN += ["--device", "cpu", "--checkpoint-every", "2", "--rank", "1", "--name", "late"]


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the store that a release left."""
    shutil.copytree(request.param, tmp_path / "artifacts")
    return tmp_path


def test_it_is_sound_and_used_like_ours(world: Path) -> None:
    store = Store.open(world / "artifacts")
    assert [a.label for a in store.list()] == ["rex@v001", "rex@v001"]
    assert not any(store.verify(deep=True).values())
    assert store.resolve("best").kind == "adapter"
    for args in (["log", "best"], ["show", "best"], ["doctor"]):
        assert forked.run(args, world) == 0, (world / "stderr").read_text()
    draw = ["sample", "[V01] dog", "-n", "1", "--steps", "1", "--device", "cpu"]
    assert forked.run(draw, world) == 0, (world / "stderr").read_text()


def test_its_interrupted_run_goes_on_or_names_what_differs(world: Path) -> None:
    code = forked.run([*TRAIN, "--seed", "1", "--resume"], world)
    said = (world / "stderr").read_text()
    assert code == 0 or (code == 10 and "the interrupted run differs: " in said), said
    assert code == 10 or "going on after step 2 of 4" in said
