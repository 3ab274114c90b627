"""Prior preservation: class images and the base as teacher."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dreamtune import families, losses
from dreamtune.artifacts import Artifact
from dreamtune.data.batches import CLASS, SUBJECT, TEACHER, Order, Prior, Table, make_batch
from dreamtune.errors import Usage
from dreamtune.methods import Concept
from dreamtune.methods.lora import Method, Options
from dreamtune.objective import Objective
from dreamtune.settings import Train
from dreamtune.stages.encode import _deal
from dreamtune.store import Store
from tests import forked
from tests.conftest import draw_photo

TINY = ["--base", "tiny:sd", "--steps", "3", "--batch", "2", "--device", "cpu", "--rank", "4"]
FEW = [*TINY, "--prior", "images", "--num-class-images", "6"]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs() <= 1e-5 * theirs.abs())


def table(family: families.Family) -> Table:
    """Two photos and two class images, with captions of the subject, of the class."""
    source = torch.Generator().manual_seed(1)
    shape = (1, family.vae.config.latent_channels, 8, 8)
    images = [
        {"mean": torch.randn(shape, generator=source), "std": torch.zeros(shape)}
        | {"meta": torch.zeros(1, 6)}
        for _ in range(4)
    ]
    tokens = [
        {s.name: s.tokenize([caption]) for s in family.text} for caption in ("a [V01] dog", "a dog")
    ]
    with torch.no_grad():
        texts = [family.encode_text(ids) for ids in tokens]
    captions = {SUBJECT: [0, 0], CLASS: [1] * 4, TEACHER: [1, 1]}
    return Table(images, texts, "text", captions, [1.0] * 4)


def test_the_loss_is_that_of_the_diffusers_scripts() -> None:
    """train_dreambooth.py: mse(instances) + prior_loss_weight * mse(classes), each a mean."""
    family = families.load("tiny:sd", torch.float32)
    subjects, classes = Order([[0, 1]], 2, 1, seed=0), Order([[2, 3]], 2, 1, seed=0)
    prior = Prior(subjects, classes)
    rows = table(family)
    picks = subjects.picks(5) + prior.picks(5)
    assert [p.role for p in picks] == [SUBJECT, SUBJECT, CLASS, CLASS]
    batch = make_batch(rows, picks, seed=0, shares={SUBJECT: 1 / 2, CLASS: 0.7 / 2})
    with torch.no_grad():
        ours = (Objective(family, {"denoiser"}, losses.l2)(batch) * batch["weight"]).sum()
        t = family.process.timesteps(batch["u"], (8, 8))
        xt = family.process.add_noise(batch["mean"], batch["noise"], t)
        text = torch.cat([rows.texts[i]["text"] for i in (0, 0, 1, 1)])
        prediction = family.denoiser(xt, t, text).sample
    own, others = prediction.chunk(2)
    noise, class_noise = batch["noise"].chunk(2)
    mse = torch.nn.functional.mse_loss
    assert close(ours, mse(own, noise) + 0.7 * mse(others, class_noise))


def test_the_teacher_is_the_base_on_the_class_prompt() -> None:
    family, plain = (families.load("tiny:sd", torch.float32) for _ in range(2))
    method = Method(Options(rank=4))
    method.attach(family, [Concept("[V01]", "dog", "rex")], 0, True)
    order = Order([[0, 1]], 2, 1, seed=0)
    batch = make_batch(
        table(family), order.picks(0) + Prior(order).picks(0), 0, {SUBJECT: 0.5, TEACHER: 0.5}
    )
    assert batch["taught"] == 2
    objective = Objective(family, method.live(), losses.l2, lambda: method.teacher(family))
    assert objective(batch)[2:].tolist() == [0.0, 0.0]  # nothing is learned yet
    (group,) = method.groups()
    for p in group.parameters.values():
        p.data.normal_(0, 0.1)
    errors = objective(batch)
    with torch.no_grad():
        t = family.process.timesteps(batch["u"], (8, 8))[2:]
        xt = family.process.add_noise(batch["mean"], batch["noise"], t.repeat(2))[2:]
        text = batch["text"]["text"][2:]
        drift = family.denoiser(xt, t, text).sample - plain.denoiser(xt, t, text).sample
    assert torch.allclose(errors[2:].detach(), drift.square().mean((1, 2, 3)), rtol=1e-4)


def test_class_images_are_dealt_in_proportion() -> None:
    a, b, c = (64, 64), (64, 96), (96, 64)
    dealt = _deal(20, {a: 7, b: 2, c: 1})
    assert len(dealt) == 20
    assert [dealt.count(size) for size in (a, b, c)] == [13, 4, 3]
    with pytest.raises(Usage, match="too few for photos of 2 shapes"):
        _deal(1, {a: 1, b: 1})


@pytest.mark.parametrize(
    ("course", "step", "expected"), [("1", 7, 1.0), ("1:2", 0, 1.0), ("1:2", 9, 2.0), ("2:1", 9, 1)]
)
def test_the_weight_of_the_subject_has_a_course(course: str, step: int, expected: float) -> None:
    assert Train(steps=10, subject_weight=course).subject_weight_at(step) == expected


@pytest.fixture
def folder(make_prep: Callable[..., Artifact], tmp_path: Path) -> Path:
    make_prep()
    return tmp_path


def newest(folder: Path, kind: str) -> Artifact:
    artifact = Store.open(folder / "artifacts").newest(kind)
    assert artifact
    return artifact


@pytest.mark.slow
def test_class_images_are_made_once(folder: Path) -> None:
    assert forked.run(["train", *FEW], folder) == 0, (folder / "stderr").read_text()
    made = newest(folder, "class")
    assert len(list((made.path / "images").glob("*.png"))) == 6
    assert made.id in newest(folder, "adapter").parents
    assert forked.run(["train", *FEW, "--seed", "1"], folder) == 0
    assert "making" not in (folder / "stderr").read_text()
    # More of them are those, and others.
    assert forked.run(["train", *FEW, "--num-class-images", "9"], folder) == 0
    more = Store.open(folder / "artifacts").list("class")[-1]
    for i in range(4):
        name = f"images/{i:04d}.png"
        assert (more.path / name).read_bytes() == (made.path / name).read_bytes()
    assert len(more.files) == 10
    # The run's own recipe gives the same adapter again.
    adapter = newest(folder, "adapter")
    assert forked.run(["train", "--recipe", str(adapter.path / "recipe.toml")], folder) == 0
    assert "up to date" in (folder / "stderr").read_text()


@pytest.mark.slow
def test_making_class_images_goes_on_after_a_kill(folder: Path) -> None:
    assert forked.run(["train", *FEW], folder, kill_at=5) == -signal.SIGKILL
    (left,) = folder.glob("artifacts/class/dog/.work-*/images")
    done = {p.name: p.stat().st_mtime_ns for p in left.glob("*.png") if not p.name.startswith(".")}
    assert 0 < len(done) < 6
    assert forked.run(["train", *FEW], folder) == 0
    finished = newest(folder, "class").path / "images"
    kept = [n for n, time in done.items() if (finished / n).stat().st_mtime_ns == time]
    assert len(kept) >= len(done) // 4 * 4


@pytest.mark.slow
def test_class_images_of_your_own(folder: Path) -> None:
    own = folder / "dogs"
    own.mkdir()
    for i in range(3):
        draw_photo(50 + i).save(own / f"{i}.png")
    (own / "broken.png").write_bytes(b"no picture")
    args = ["train", *TINY, "--prior", "images", "--class-images", str(own)]
    assert forked.run(args, folder) == 0, (folder / "stderr").read_text()
    assert "broken.png is no class image" in (folder / "stderr").read_text()
    lines = (newest(folder, "class").path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["caption"] for line in lines] == ["a photo of a dog"] * 3
    recipe = (newest(folder, "adapter").path / "recipe.toml").read_text()
    assert 'class_images = "dogs@v001"' in recipe and str(folder) not in recipe


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--num-class-images", "5"], "add --prior images"),
        (["--prior", "images", "--class-images", "nowhere"], "nowhere"),
        (["--subject-weight", "1:2:3"], "FIRST:LAST"),
    ],
)
def test_what_cannot_be_meant(more: list[str], words: str, folder: Path) -> None:
    assert forked.run(["train", *TINY, *more], folder) in (2, 10)
    assert words in (folder / "stderr").read_text()
