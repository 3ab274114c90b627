"""`train --from ADAPTER`: what an adapter knows is where training starts, and it stays known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreamtune import families, fsops, plugins
from dreamtune.artifacts import Artifact
from dreamtune.formats import adapters, lora
from dreamtune.methods import Concept
from dreamtune.recipe import Chosen
from dreamtune.settings import Train
from dreamtune.stages import origin, sets
from dreamtune.stages import train as stage
from dreamtune.stages.trained import Trained
from dreamtune.store import Store
from tests import forked, untrained
from tests.test_matrix import predict

TINY = ["--base", "tiny:sd", "--batch", "2", "--variants", "1", "--device", "cpu", "--steps", "2"]


def said(folder: Path) -> str:
    return (folder / "stderr").read_text()


def newest(folder: Path) -> Artifact:
    artifact = Store.open(folder / "artifacts").newest("adapter")
    assert artifact
    return artifact


def concepts(artifact: Artifact) -> dict[str, tuple[str, str]]:
    known = artifact.read_json("adapter.json")["concepts"]
    return {c["identifier"]: (c["class_word"], c["bindings"][0]["word"]) for c in known}


# ---- where training starts

STARTS = {
    "lora": ("lora", {"rank": 3, "alpha": 2.0, "targets": ("all",), "train_text": True}),
    "rslora": ("lora", {"rank": 4, "rslora": True}),
    "dora": ("lora", {"rank": 4, "dora": True, "targets": ("all",)}),
    "pivotal": ("lora", {"rank": 4, "train_token": True, "vectors": 2}),
    "embedding": ("embedding", {"vectors": 3}),
}


@pytest.mark.parametrize("base", ["sd", "sdxl", "flux"])
@pytest.mark.parametrize("kind", STARTS)
def test_step_0_is_the_adapter(
    kind: str, base: str, store: Store, make_prep: Callable[..., Artifact]
) -> None:
    """What is learned on starts where the other run ended: the same predictions."""
    method, options = STARTS[kind]
    if base == "flux" and "dora" in options:
        options = {**options, "targets": ("attn.to_out.0",)}  # kohya's files fuse the others
    before = untrained.make(store, "rex", method, base=f"tiny:{base}", **options)
    asked = Train(base=f"tiny:{base}", start="rex", steps=1)
    make_prep("rex")
    module = plugins.load("dreamtune.methods", method)
    plan = stage.plan(store, asked, Chosen(method, module.Options()), ["rex"])
    assert plan.origin and plan.name == "rex"

    family = families.load(f"tiny:{base}", torch.float32)
    ask = stage.Run(store, plan.sets, plan.train, plan.method, "rex", origin=plan.origin)
    made = module.Method(plan.method.options)
    made.attach(family, ask.concepts, 0, False, plan.origin.start(family, ask.concepts))
    assert sum(len(group.parameters) for group in made.groups())

    sampled = families.load(f"tiny:{base}", torch.float32)
    Trained(before).put_in(sampled)
    ours, theirs = (predict(f, "a [V01] dog") for f in (family, sampled))
    plain = predict(families.load(f"tiny:{base}", torch.float32), "a dog")
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, plain, rtol=1e-2, atol=1e-3)


def test_a_file_of_another_program(store: Store, make_prep: Callable[..., Artifact]) -> None:
    """kohya's layout with ranks that differ by module, as its trainer and resizers make."""
    artifact = untrained.make(store, "rex", rank=4, targets=("all",))
    tensors = load_file(artifact.path / "rex.safetensors")
    cut = next(key for key in tensors if key.endswith("to_q.lora_down.weight"))
    name = cut.removesuffix(".lora_down.weight")
    tensors[cut] = tensors[cut][:2].clone()
    tensors[f"{name}.lora_up.weight"] = tensors[f"{name}.lora_up.weight"][:, :2].clone()
    file = store.path / "downloaded.safetensors"
    fsops.write_safetensors(file, tensors, {})
    make_prep("rex")
    options = plugins.load("dreamtune.methods", "lora").Options()
    asked = Train(base="tiny:sd", start=str(file), steps=1)
    plan = stage.plan(store, asked, Chosen("lora", options), ["rex"])
    assert plan.method.options.rank == 4 and plan.origin
    family = families.load("tiny:sd", torch.float32)
    made = plugins.load("dreamtune.methods", "lora").Method(plan.method.options)
    idea = [Concept("[V01]", "dog", "rex")]
    made.attach(family, idea, 0, False, plan.origin.start(family, idea))
    ours, theirs = lora.collect("unet", family.denoiser), adapters.read_adapter(file).adapter
    assert {u.rank for u in ours.values()} == {2, 4} and ours.keys() == theirs["unet"].keys()
    for module, update in theirs["unet"].items():
        assert torch.allclose(ours[module].change().flatten(), update.change().flatten())


# ---- what stays known


def test_new_photos_with_some_of_the_old(
    store: Store, make_prep: Callable[..., Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    make_prep("rex", photos=4)
    old = sets.find(store, ["rex"])
    new = sets.find(store, [make_prep("tom", class_word="cat", photos=6).name + " as V02"])

    def shares(share: float) -> tuple[float, int]:
        found = origin.replayed(new, old, share)
        shown = [one.repeats * len(one.samples()) for one in found]
        return sum(shown[1:]) / sum(shown), len(found)

    assert shares(0.3) == (pytest.approx(0.3, abs=0.01), 2)
    assert shares(0.05) == (pytest.approx(0.05, abs=0.01), 2)
    assert shares(0.0) == (0.0, 1)
    # Photos that are in both are not counted as old ones.
    more = sets.find(store, [make_prep("rex", photos=6).name])
    assert origin.replayed(more, old, 0.3) == more


@pytest.mark.slow
@pytest.mark.parametrize("method", [["lora"], ["embedding"], ["lora", "--train-token"]])
def test_a_second_concept_is_learned_and_the_first_is_kept(
    method: list[str], make_prep: Callable[..., Artifact], tmp_path: Path
) -> None:
    make_prep("rex")
    make_prep("tom", class_word="cat")
    assert forked.run(["train", "rex", "--method", *method, *TINY], tmp_path) == 0, said(tmp_path)
    first = newest(tmp_path)
    again = ["train", "tom", "--from", "rex", "--method", method[0], *TINY]
    assert forked.run(again, tmp_path) == 0, said(tmp_path)
    assert "tom is [V02], since rex@v001 has [V01]" in said(tmp_path)
    assert "3 photos that it knows are shown again, 30% of all" in said(tmp_path)
    second = newest(tmp_path)
    assert second.name == "rex+tom" and first.id in second.parents
    old, new = concepts(first), concepts(second)
    assert {i: word for i, (word, _) in new.items()} == {"[V01]": "dog", "[V02]": "cat"}
    if method == ["lora"]:
        assert new["[V01]"] == old["[V01]"] and new["[V02]"][1] != old["[V01]"][1]
    # The newer adapter was made from the other one, so the prompt needs no --with.
    sample = ["sample", "[V01] dog", "-n", "1", "--steps", "2", "--json"]
    assert forked.run(sample, tmp_path) == 0, said(tmp_path)
    assert forked.run([*again[:2], "--from", "rex+tom", *again[4:]], tmp_path) == 0, said(tmp_path)
    assert newest(tmp_path).name == "rex+tom" and concepts(newest(tmp_path)).keys() == new.keys()


@pytest.mark.slow
def test_more_photos_of_the_same(make_prep: Callable[..., Artifact], tmp_path: Path) -> None:
    make_prep("rex", photos=3)
    assert forked.run(["train", "rex", "--rank", "4", *TINY], tmp_path) == 0, said(tmp_path)
    make_prep("rex", photos=5)
    again = ["train", "rex", "--from", "rex", *TINY]
    assert forked.run(again, tmp_path) == 0, said(tmp_path)
    adapter = newest(tmp_path)
    assert adapter.label == "rex@v002" and list(concepts(adapter)) == ["[V01]"]
    assert adapter.recipe["method"]["rank"] == 4 and adapter.recipe["train"]["start"] == "rex@v001"
    # From the one that it was made from, it is the same run again.
    named = ["train", "rex", "--from", "rex@v001", *TINY, "--json"]
    assert forked.run(named, tmp_path) == 0, said(tmp_path)
    assert json.loads((tmp_path / "stdout").read_text())["id"] == adapter.id


@pytest.mark.slow
def test_killed_and_resumed_it_is_the_same(
    make_prep: Callable[..., Artifact], tmp_path: Path
) -> None:
    make_prep("rex")
    make_prep("tom", class_word="cat")
    assert forked.run(["train", "rex", "--rank", "4", *TINY], tmp_path) == 0, said(tmp_path)
    again = ["train", "tom", "--from", "rex", *TINY[:-1], "4", "--loss", "perceptual"]
    again += ["--checkpoint-every", "1", "--name"]
    assert forked.run([*again, "tom"], tmp_path, calls=tmp_path / "calls") == 0, said(tmp_path)
    calm = newest(tmp_path)
    fsops.discard(calm.path)
    late = int((tmp_path / "calls").read_text()) - 6
    assert forked.run([*again, "tom"], tmp_path, kill_at=late) == -9
    assert forked.run([*again, "tom", "--resume"], tmp_path) == 0, said(tmp_path)
    assert "going on after step" in said(tmp_path)
    assert newest(tmp_path).id == calm.id


# ---- what is refused


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--rank", "8"], 2, ["--rank 8 does not fit rex@v001", "its rank is 4"]),
        (["--train-text"], 2, ["--train-text true does not fit", "its train text is false"]),
        (["--base", "tiny:sdxl"], 2, ["rex@v001 is for sd models", "--base tiny:sd"]),
        (["--base", "mini"], 0, ["on tiny:sd, the base of rex@v001"]),
        (["--method", "embedding"], 2, ["rex@v001 is by lora, not by embedding"]),
        (["--method", "dreambooth"], 2, ["dreambooth cannot start from an adapter"]),
        (["--from", "nobody"], 10, ["nobody"]),
        (["--from", "other.safetensors"], 2, ["other.safetensors does not fit the base tiny:sd"]),
    ],
)
def test_what_does_not_fit_is_one_line(
    args: list[str],
    code: int,
    words: list[str],
    store: Store,
    make_prep: Callable[..., Artifact],
    tmp_path: Path,
) -> None:
    make_prep("rex")
    untrained.make(store, "rex", rank=4)
    if "other.safetensors" in args:
        other = untrained.make(store, "other", base="tiny:sdxl", rank=4)
        data = (other.path / "pytorch_lora_weights.safetensors").read_bytes()
        (tmp_path / "other.safetensors").write_bytes(data)
    given = [*(args if "--base" in args else [*args, "--base", "tiny:sd"]), "--steps", "1"]
    given += [] if "--from" in args else ["--from", "rex"]
    assert forked.run(["train", *given, "--batch", "1", "--device", "cpu"], tmp_path) == code
    errors = [line for line in said(tmp_path).splitlines() if line.startswith("error: ")]
    assert len(errors) == (code != 0)
    assert all(word in said(tmp_path) for word in words), said(tmp_path)
