"""Joint success, and the methods and options side by side: the same subjects and training time.

    python -m tools.mini.compare --work DIR                # all 60 held-out subjects
    python -m tools.mini.compare --work DIR --minutes 25   # as many as fit
    python -m tools.mini.compare --work DIR --arms lora    # joint success of LoRA, and the controls
    python -m tools.mini.compare --work DIR --turn 1/2     # every second one: beside --turn 2/2
    python -m tools.mini.compare --work DIR --report       # what has been measured so far
    python -m tools.mini.compare --work DIR --sheet FILE   # pictures of twelve that were measured

Does personalisation give the subject and a new background in one picture? `prep`, `train` and
`sample` are dreamtune's own. A picture succeeds when the subject is the nearest of all emoji of its
style, by the features of `evaluate`, and its background is the colour asked for. Four controls are
asked the same: the base with the subject's own name, the base with the name of the trained emoji
that looks most like it, another subject's adapter, and the training pictures as they are. What they
are after the autoencoder alone is the best that pictures of the base can be.

A run that was cut off goes on where it was. Each arm trains for the same processor time, by a rate
of updates that is measured once; the results are lines of a file. For each arm: subject, background
and both (joint success), the likeness (cosine of features to the subject's), and its difference
from plain LoRA with a 95 % interval over subjects.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn import functional as F

from dreamtune import bases
from dreamtune.artifacts import Artifact
from dreamtune.recipe import Chosen, method_options
from dreamtune.settings import Prep, Sample, Train
from dreamtune.stages import prep as prep_stage
from dreamtune.stages import sample as sample_stage
from dreamtune.stages import sets
from dreamtune.stages import train as train_stage
from dreamtune.stages.adapters import NONE
from dreamtune.stages.lines import Line
from dreamtune.store import Store
from tools.mini.artwork import Concept
from tools.mini.evaluate import reconstruct, share
from tools.mini.sampling import to_uint8
from tools.mini.settings import SETTINGS
from tools.mini.subjects import PHOTO, Judge, Subject, choose
from tools.mini.words import STYLES

LORA = {"rank": 16, "targets": ("all",)}
BASELINE = "lora"
# The defaults are for bases a hundred times as large. These rates, and the guidance below, were the
# best of two or three tried on six subjects, with 60 to 200 updates.
RATE = {"learning_rate": 2e-3}
# Named before anything was measured: the four methods, then options of LoRA. (Training the token
# with a LoRA is pivotal tuning, so that the fifth option is the fourth method.)
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    BASELINE: ("lora", LORA, RATE),
    "dreambooth": ("dreambooth", {}, {"learning_rate": 3e-4}),
    "embedding": ("embedding", {}, {"learning_rate": 2e-2}),
    "pivotal (train the token)": ("lora", LORA | {"train_token": True}, RATE),
    "prior (teacher)": ("lora", LORA, RATE | {"prior": "teacher"}),
    "perceptual": ("lora", LORA, RATE | {"loss": "perceptual"}),
    "min-SNR 5": ("lora", LORA, RATE | {"min_snr_gamma": 5.0}),
    "unfreezing 2:all@0.5": ("lora", LORA | {"train_text": True, "unfreeze": "2:all@0.5"}, RATE),
}
# The same adapter at less than its whole strength: likeness should rise with it.
SCALED = "pivotal (train the token)"
STRENGTHS = {f"{SCALED} at {s:g}": s for s in (0.0, 0.25, 0.5, 0.75)}
CONTROLS = (
    "base, the subject's name",
    "base, its twin's name",
    "another's adapter",
    "training",
    "training, autoencoded",  # what no picture of the base can surpass
)
IDENTIFIER = "[V01]"
BATCH = 4
CALIBRATION = (5, 35)  # updates of the two runs whose difference is the time of an update
SHORTEST, LONGEST = 8, 400  # updates
ON_SHEET = 12  # subjects
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What every line of one comparison shares."""

    setting: str
    base: str  # fingerprint
    seconds: float
    count: int
    guidance: float
    views: int


class Results:
    """A line for each subject and arm, in a file that is only appended to."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, dataclasses.asdict(plan)
        self.lines = [line for line in self._read() if "arm" in line]
        self.steps = self._settled()  # updates, by arm

    def find(self, subject: str, arm: str) -> Row | None:
        found = (x for x in self.lines if (x["subject"], x["arm"]) == (subject, arm))
        return next(found, None)

    def add(self, line: Row) -> None:
        self.lines.append(line)
        self._write(line)

    def strip(self, subject: str) -> Path:
        """A training picture of a subject, and below it what the baseline made."""
        kind = f"{self.plan['base'][:12]}-{self.plan['seconds']:g}"
        return self.path.with_suffix("") / kind / f"{subject}.png"

    def settle(self, steps: dict[str, int]) -> None:
        """Offer numbers of updates. Of processes side by side the first to write is heeded by all,
        or their subjects would train differently long.
        """
        self._write({"steps": steps})
        self.steps |= self._settled()

    def _settled(self) -> dict[str, int]:
        steps: dict[str, int] = {}
        for line in reversed([line for line in self._read() if "steps" in line]):
            steps |= line["steps"]
        return steps

    def _read(self) -> list[Row]:
        text = self.path.read_text() if self.path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return [line for line in lines if line["plan"] == self.plan]

    def _write(self, line: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({**line, "plan": self.plan}) + "\n")


class Bench:
    """dreamtune in a store that lasts as long as one subject's arms are compared."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan, self.store = folder, plan, Store.open(folder / "store")

    def prepare(self, subject: Subject) -> Artifact:
        photos = self.folder / subject.name
        photos.mkdir()
        for number, pixels in enumerate(subject.pictures):
            Image.fromarray(pixels).save(photos / f"{number}.png")
        word = subject.concept.category
        options = Prep(class_word=word, threshold="0", keep_duplicates=True, workers=1)
        prepared, _ = prep_stage.run(photos, options, self.store, subject.name)
        assert prepared is not None
        return prepared

    def learn(self, prepared: Artifact, arm: str, steps: int) -> tuple[Artifact, float]:
        """The adapter, and the processor seconds of its updates and what comes before."""
        method, options, changes = ARMS[arm]
        train = Train(base="mini", steps=steps, batch=BATCH, device="cpu", **changes)
        chosen = Chosen(method, method_options()[method](**options))
        name = f"{prepared.name}-{method}"
        started = time.process_time()
        ask = train_stage.Run(self.store, [sets.whole(prepared)], train, chosen, name)
        return train_stage.run(ask), time.process_time() - started

    def steps(self, prepared: Artifact, arms: Sequence[str]) -> dict[str, int]:
        """Updates that fill the seconds, by arm: by the difference of two short runs."""
        found = {}
        self.learn(prepared, BASELINE, SHORTEST)  # what is loaded once is no arm's time
        for arm in arms:
            few, many = (self.learn(prepared, arm, count)[1] for count in CALIBRATION)
            update = max((many - few) / (CALIBRATION[1] - CALIBRATION[0]), 1e-4)
            found[arm] = min(max(SHORTEST, round(self.plan.seconds / update)), LONGEST)
        return found

    def autoencoded(self, pictures: np.ndarray) -> np.ndarray:
        """(N, PHOTO, PHOTO, 3) uint8 -> (N, H, W, 3) uint8, as the base paints them at best."""
        side = SETTINGS[self.plan.setting].pixels
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
        images = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        base = bases.find("mini")
        assert not isinstance(base, bases.Tiny)
        vae = base.load("vae", AutoencoderKL, torch.float32)
        return to_uint8(reconstruct(vae, images))

    def pictures(self, prompts: Sequence[str], adapter: Artifact | None) -> np.ndarray:
        """`count` pictures of each prompt: (N, H, W, 3) uint8."""
        sample = Sample(base="mini", count=self.plan.count, guidance=self.plan.guidance)
        refs = [adapter.label if adapter else NONE]
        lines = [Line(prompt, sample) for prompt in prompts]
        made = sample_stage.run(sample_stage.Run(self.store, lines, refs, sample))
        files = [made.path / line["file"] for line in made.read_json("samples.json")]
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def verdict(judging: Judge, subject: Subject, pictures: np.ndarray) -> Row:
    """What one arm's pictures of a subject show."""
    own = judging.references.number[subject.concept.code]
    style = judging.references.styles == list(STYLES).index(subject.style)
    here = style & (judging.references.codes == own)
    likeness = judging.features(pictures) @ judging.references.bank[here].T
    verdicts = judging.verdicts(subject, pictures)
    return {"verdicts": verdicts, "likeness": [round(float(x), 4) for x in likeness[:, 0]]}


@dataclass
class Turn:
    """One subject's arms and controls.

    twin: the trained concept that looks most like it. other: another subject's baseline adapter.
    """

    bench: Bench
    subject: Subject
    twin: Concept
    steps: dict[str, int]
    other: Artifact | None

    def __post_init__(self) -> None:
        self.prepared = self.bench.prepare(self.subject)
        self.learned: dict[str, tuple[Artifact, float]] = {}

    def learn(self, arm: str) -> tuple[Artifact, float]:
        if arm not in self.learned:
            self.learned[arm] = self.bench.learn(self.prepared, arm, self.steps[arm])
        return self.learned[arm]

    def pictures(self, arm: str) -> tuple[np.ndarray | None, float]:
        """Those of an arm, control or strength, and the seconds of its training."""
        concept, word = self.subject.concept, IDENTIFIER
        if arm.startswith("training"):
            shown = self.subject.pictures
            shown = shown if arm == "training" else self.bench.autoencoded(shown)
            return np.concatenate([shown] * len(self.subject.colours)), 0.0
        if arm == "base, the subject's name":
            return self._drawn(concept.names[0], None), 0.0
        if arm == "base, its twin's name":
            return self._drawn(self.twin.names[0], None), 0.0
        if arm == "another's adapter":
            thing = f"{word} {concept.category}"
            return (self._drawn(thing, self.other) if self.other else None), 0.0
        mark = f":{STRENGTHS[arm]:g}" if arm in STRENGTHS else ""
        adapter, seconds = self.learn(SCALED if arm in STRENGTHS else arm)
        return self._drawn(f"{word}{mark} {concept.category}", adapter), seconds

    def _drawn(self, thing: str, adapter: Artifact | None) -> np.ndarray:
        style = STYLES[self.subject.style][0]
        return self.bench.pictures(self.subject.prompts(f"{style} {thing}"), adapter)


def measure(
    subjects: Sequence[Subject],
    judging: Judge,
    results: Results,
    plan: Plan,
    arms: Sequence[str],
    until: float,
) -> None:
    """The arms and the controls of subject after subject, until the time is up."""
    arms = list(dict.fromkeys((BASELINE, *arms)))  # a control is another subject's baseline
    every = (*arms, *(STRENGTHS if SCALED in arms else ()), *CONTROLS)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), plan)
        other: Artifact | None = None
        for number, subject in enumerate(subjects):
            wanted = [arm for arm in every if not results.find(subject.name, arm)]
            if not wanted:
                continue
            turn = Turn(bench, subject, judging.twin(subject), results.steps, other)
            if unknown := [arm for arm in arms if arm not in results.steps]:
                results.settle(bench.steps(turn.prepared, unknown))
            for arm in wanted:
                if time.monotonic() > until:
                    return
                made, seconds = turn.pictures(arm)
                if made is not None:
                    line = {"subject": subject.name, "arm": arm, "seconds": round(seconds, 2)}
                    results.add(line | verdict(judging, subject, made))
                    if arm == BASELINE:
                        draw_strip(results.strip(subject.name), [subject.pictures[0], *made])
            other = turn.learn(BASELINE)[0]
            print(f"{number + 1} of {len(subjects)}: {subject.name}", flush=True)


def report(results: Results) -> Iterator[str]:
    """A row for each arm, and its paired difference from the baseline."""
    plain = {x["subject"]: x for x in results.lines if x["arm"] == BASELINE}
    for arm in (*ARMS, *STRENGTHS, *CONTROLS):
        lines = [line for line in results.lines if line["arm"] == arm]
        if not lines:
            continue
        verdicts = torch.tensor([v for line in lines for v in line["verdicts"]])
        subject, ground = verdicts.bool().T
        likeness = np.mean([np.mean(line["likeness"]) for line in lines])
        updates = f"{results.steps[arm]} updates; " if arm in ARMS else ""
        row = f"{arm}: {len(lines)} subjects, {updates}subject {share(subject)}"
        row += f", background {share(ground)}, both {share(subject & ground)}"
        row += f", likeness {likeness:.3f}"
        pairs = [(line, plain[line["subject"]]) for line in lines if line["subject"] in plain]
        if arm in ARMS and arm != BASELINE and len(pairs) > 1:
            row += "; against lora: " + ", ".join(
                f"{name} {interval([of(a) - of(b) for a, b in pairs])}"
                for name, of in (("both", _both), ("likeness", _likeness))
            )
        yield row
    ranks = list(strengths(results))
    if ranks:
        yield f"likeness and strength, Spearman: {interval(ranks)}, median {np.median(ranks):.2f}"


def strengths(results: Results) -> Iterator[float]:
    """Of each subject, the rank correlation of likeness with strength (five of them)."""
    arms = [*STRENGTHS, SCALED]
    for subject in dict.fromkeys(line["subject"] for line in results.lines):
        found = [results.find(subject, arm) for arm in arms]
        values = [_likeness(line) for line in found if line]
        if len(values) == len(arms):
            yield float(np.corrcoef(np.argsort(np.argsort(values)), range(len(arms)))[0, 1])


def _both(line: Row) -> float:
    return float(np.mean([a and b for a, b in line["verdicts"]]))


def _likeness(line: Row) -> float:
    return float(np.mean(line["likeness"]))


def interval(differences: Sequence[float]) -> str:
    """Mean and 95 % interval over subjects, by the bootstrap."""
    values = np.array(differences)
    drawn = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5])
    return f"{values.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def draw_strip(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Pictures of any size below one another, all PHOTO px."""
    cells = [np.asarray(Image.fromarray(cell).resize((PHOTO, PHOTO))) for cell in pictures]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(cells)).save(path)


def sheet(subjects: Sequence[Subject], results: Results) -> Image.Image:
    """The strips of subjects, side by side."""
    columns = [np.asarray(Image.open(results.strip(subject.name))) for subject in subjects]
    return Image.fromarray(np.concatenate(columns, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=Path("tools/mini/work/compare.jsonl"))
    parser.add_argument("--setting", choices=SETTINGS, default="cpu64")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=10.0, help="training of each arm, CPU")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no arm is begun")
    parser.add_argument("--count", type=int, default=2, help="pictures of each background")
    parser.add_argument("--views", type=int, default=2, help="behind each reference")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--turn", default="1/1", help="K/N: the subjects of one of N processes")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--sheet", type=Path, help="only draw this, of twelve subjects")
    ask = parser.parse_args()
    until = time.monotonic() + 60 * ask.minutes
    base = bases.find("mini").fingerprint()
    plan = Plan(ask.setting, base, ask.seconds, ask.count, ask.guidance, ask.views)
    results = Results(ask.results, plan)
    if not ask.report:
        judging = Judge(ask.work, SETTINGS[ask.setting], ask.views)
        subjects = choose(ask.work, SETTINGS[ask.setting], judging, ask.subjects)
        if ask.sheet:
            sheet(subjects[:ON_SHEET], results).save(ask.sheet, optimize=True)
            return
        turn, turns = map(int, ask.turn.split("/"))
        measure(subjects[turn - 1 :: turns], judging, results, plan, ask.arms, until)
    print("\n".join(report(results)))


if __name__ == "__main__":
    main()
