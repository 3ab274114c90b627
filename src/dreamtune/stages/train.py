"""train: a prep artifact to an adapter artifact."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import (
    bases,
    checkpoints,
    console,
    devices,
    families,
    fsops,
    optimizers,
    plugins,
    processes,
    recipe,
    schedules,
)
from dreamtune.artifacts import Artifact, Draft, Store
from dreamtune.bases import Found
from dreamtune.bases.overrides import Overridden, Overrides, override
from dreamtune.errors import Interrupted, NonFinite, Usage, UserError
from dreamtune.methods import Concept, Facts, Group, Method
from dreamtune.settings import Train
from dreamtune.stages import classes, propose, resume
from dreamtune.stages.encode import Encoder, Lesson
from dreamtune.stages.log import Log
from dreamtune.stages.preview import preview
from dreamtune.stages.sets import PhotoSet
from dreamtune.stages.signals import Heard, signals

if TYPE_CHECKING:
    from dreamtune.ema import Average
    from dreamtune.objective import Weighting

VERSION = 1  # of what an adapter artifact holds and how it is made
CHECKPOINT_SECONDS = 600.0


@dataclass(frozen=True)
class Run:
    """One call of `train`: what is asked for, and what is known before the work."""

    store: Store
    sets: Sequence[PhotoSet]
    train: Train
    method: recipe.Chosen
    name: str
    classes: Sequence[Artifact] = ()
    resume: bool = False
    fresh: bool = False
    allow_drift: bool = False
    checkpoint_every: int = 500

    @functools.cached_property
    def base(self) -> Found:
        return override(bases.find(self.train.base), Overrides.of(self.train))

    @functools.cached_property
    def recipe(self) -> dict[str, Any]:
        """All that decides the result, the base's weights included."""
        return {
            "name": self.name,
            "photos": [one.record() for one in self.sets],
            "base_hash": self.base.fingerprint(),
            "processes": processes.count(),
            "train": {**dataclasses.asdict(self.train), **bases.named(self.base)},
            "method": {"name": self.method.name, **dataclasses.asdict(self.method.options)},
        }

    @functools.cached_property
    def key(self) -> str:
        return self.store.key("adapter", VERSION, self.recipe, self.parents)

    @property
    def parents(self) -> list[str]:
        return [*(one.prep.id for one in self.sets), *(images.id for images in self.classes)]

    @property
    def concepts(self) -> list[Concept]:
        """What is learned, each once."""
        words = {one.identifier: one.class_word for one in self.sets}
        return [Concept(name, word, self.name) for name, word in words.items()]


def run(ask: Run) -> Artifact:
    """Train, or find that it was done before."""
    processes.join(devices.choose(ask.train.device))
    with processes.in_turn():
        ask = with_class_images(ask)
    done = ask.store.find(ask.key)
    if done:
        console.say(f"{done.label} is up to date")
        return ask.store.reuse(done) if processes.first() else done
    artifact = _lead(ask) if processes.first() else _follow(ask)
    processes.leave()
    return artifact


def _lead(ask: Run) -> Artifact:
    """The first process, or the only one: checks, decides where to go on, and writes."""
    families.of(ask.base)  # refuses what is no family's
    bases.remember(ask.base)
    for artifact in [*(one.prep for one in ask.sets), *ask.classes]:
        artifact.check(deep=True)
    with ask.store.draft("adapter", ask.name, ask.key, ask.recipe, ask.parents, keep=True) as draft:
        checkpoint = processes.share(resume.point(ask, draft))
        finished = Training(ask, draft, checkpoint).run()
    processes.wait()
    assert finished
    return finished


def _follow(ask: Run) -> Artifact:
    """Another process: computes what the first decides."""
    Training(ask, None, processes.share(None)).run()
    processes.wait()
    finished = ask.store.find(ask.key)
    assert finished
    return finished


def with_class_images(ask: Run) -> Run:
    """The run with the class images that it asks for, which are made on first use."""
    if ask.train.prior != "images" or ask.classes:
        return ask
    photos = sum(len(one.samples()) for one in ask.sets)
    count = ask.train.num_class_images or min(200, max(40, 10 * photos))
    words = [*dict.fromkeys(one.class_word for one in ask.sets)]
    given = ask.train.class_images
    if given and len(words) > 1:
        raise Usage(
            f"--class-images {given} cannot show both {' and '.join(words)}",
            fix="leave it out, and the base makes them",
        )
    images = [classes.ensure(ask.store, ask.train, word, count) for word in words]
    # A label, since a folder's path means nothing elsewhere.
    train = dataclasses.replace(ask.train, class_images=images[0].label if given else None)
    return dataclasses.replace(ask, train=train, classes=images)


class Training:
    """The work itself: load, encode, step, save. A process without a draft only computes."""

    def __init__(self, ask: Run, draft: Draft | None, checkpoint: Path | None) -> None:
        self.ask, self.train, self.draft, self.checkpoint = ask, ask.train, draft, checkpoint
        self.seconds: dict[str, float] = {}

    def run(self) -> Artifact | None:
        """All phases in order; the finished artifact, where there is a draft for it."""
        with self._phase("import"):
            _import_libraries()
        with self._phase("load"):
            self._load()
        with self._phase("encode"), processes.in_turn():
            self._encode()
        with self._phase("rehearse"):
            self._rehearse()
        with signals() as self.wishes:  # one that comes while the result is saved lets it finish
            with self._phase("steps"):
                self._step()
            if not self.draft:
                return None
            with self._phase("save"), self._state_kept(self.train.steps):
                self._export(self._folder, self.train.steps)
                self._describe()
            run: dict[str, Any] = {"seconds": self.seconds, **self.machine}
            run |= {"final_loss": self.final_loss, "trained_parameters": self._count()}
            return self.draft.commit(run)

    @property
    def _folder(self) -> Path:
        assert self.draft, "this process does not write"
        return self.draft.path

    @contextlib.contextmanager
    def _state_kept(self, step: int) -> Iterator[None]:
        """When something else cannot be written, the state is, so that no update is lost."""
        try:
            yield
        except (Interrupted, NonFinite):  # it is saved already, or should not be
            raise
        except Exception:
            with contextlib.suppress(UserError, OSError):
                self._checkpoint(step)
                console.warn(f"step {step} is saved, and --resume goes on from there")
            raise

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 3)

    # Load.

    def _load(self) -> None:
        """The base, the method in it, and the optimizer, on the device."""
        from accelerate import Accelerator
        from accelerate.utils import GradientAccumulationPlugin

        from dreamtune import losses
        from dreamtune.objective import Objective

        train, ask = self.train, self.ask
        device = devices.choose(train.device)
        precision = devices.choose_precision(train.precision, device)
        if precision == "fp16" and device == "cpu":
            raise Usage("fp16 does not train on a CPU", fix="use --precision bf16 or fp32")
        mixed = "no" if precision == "fp32" else precision
        # Accumulation is ours (loop.train); the environment must not add another one.
        plugin = GradientAccumulationPlugin(num_steps=1)
        self.accelerator = Accelerator(
            mixed_precision=mixed, cpu=device == "cpu", gradient_accumulation_plugin=plugin
        )
        devices.make_exact(train.tf32)
        self.machine = self._machine(precision)
        self.family = devices.load(ask.base, str(self.accelerator.device), precision)
        self._check_resolution()
        self._tune()
        self.method: Method = plugins.load(recipe.METHODS, ask.method.name).Method(
            ask.method.options
        )
        self.method.attach(self.family, ask.concepts, train.seed, train.prior == "teacher")
        if train.gradient_checkpointing:
            devices.save_memory(self.family, self.method.live())
        self.concepts = [self._bound(concept) for concept in ask.concepts]
        self.parameters = {
            f"{group.role}.{name}": p
            for group in self.method.groups()
            for name, p in group.parameters.items()
        }
        objective = Objective(
            self.family,
            self.method.live(),
            getattr(losses, train.loss),
            functools.partial(self.method.teacher, self.family),
            self._weighting(),
        )
        optimizer = optimizers.make(train.optimizer, self._groups())
        self._prepare(objective, optimizer)
        self.average = self._average()
        console.say(f"learning rate {self._peak():.2g} (--learning-rate)")
        for concept in self.concepts:
            words = ", ".join(sorted({b["word"] for b in concept.bindings}))
            console.say(f"{concept.identifier} is {words!r} to {ask.base.name}")

    def _machine(self, precision: str) -> dict[str, Any]:
        """What the bits of the updates depend on; Usage when a resumed run had others."""
        machine: dict[str, Any] = {
            "device": devices.model_of(self.accelerator.device),
            "precision": precision,
            "processes": self.accelerator.num_processes,
        }
        if self.checkpoint:
            drift = resume.drifted(self.checkpoint, machine, self.ask.allow_drift)
            machine |= {resume.DRIFT: drift} if drift else {}
        return machine

    def _tune(self) -> None:
        """Let the base's noise be drawn, and dev be guided, as the settings say."""
        from dreamtune.diffusion import Times

        train, family = self.train, self.family
        density = train.timesteps or family.process.times.density
        times = Times(density, train.logit_mean, train.logit_std, train.mode_scale)
        family.process = family.process.tuned(times, train.shift)
        if train.guidance is not None:
            if family.guidance is None:
                raise Usage(f"{family.base} is not told a guidance scale", fix="drop --guidance")
            family.guidance = train.guidance

    def _prepare(self, objective: Any, optimizer: Any) -> None:
        """Both as Accelerate wants them: on the device, and in several processes in step."""
        from accelerate.utils import DistributedDataParallelKwargs

        # Layers that are frozen for a time, or whose output nobody reads, get no gradient.
        groups = self.method.groups()
        idle = any(group.start or group.role.startswith("text") for group in groups)
        handler = DistributedDataParallelKwargs(find_unused_parameters=idle)
        self.accelerator.ddp_handler = handler
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)

    def _weighting(self) -> Weighting | None:
        """How much timesteps count; Usage when the base's kind of noise has no such weights."""
        from dreamtune import weightings

        train, prediction = self.train, getattr(self.family.process, "prediction", "flow")
        if train.min_snr_gamma and prediction != "flow":
            return functools.partial(weightings.min_snr, gamma=train.min_snr_gamma)
        if train.v_target and prediction == "epsilon":
            return weightings.v_target
        if not train.min_snr_gamma and not train.v_target:
            return None
        asked, wanted = (
            ("--v-target", "noise") if train.v_target else ("--min-snr-gamma", "noise or v")
        )
        raise Usage(
            f"{asked} does not fit the base {self.ask.base.name}",
            why=f"it is for bases that predict {wanted}",
            fix="leave it out",
        )

    def _average(self) -> Average | None:
        """The average of weights, where one is kept: by default in long runs."""
        from dreamtune.ema import DECAY, LONG, Average

        train = self.train
        default = DECAY if train.steps >= LONG and not self._averages else 0.0
        decay = default if train.ema is None else train.ema
        device = None if train.ema_device == "same" else train.ema_device
        return Average(self.parameters, decay, device) if decay else None

    @property
    def _averages(self) -> bool:
        """Whether the optimizer keeps an average of its own."""
        return self.train.optimizer in optimizers.AVERAGES

    def _bound(self, concept: Concept) -> Concept:
        """The concept with the words that the tokenizers bind it to."""
        bindings = [stack.record(concept.identifier) for stack in self.family.text]
        return dataclasses.replace(concept, bindings=bindings)

    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, with the peak of each learning rate."""
        return [
            {
                "params": list(group.parameters.values()),
                "peak": self._peak(group),
                "lr": self._peak(group),
                "weight_decay": _first(group.weight_decay, self.train.weight_decay),
                "start": round(group.start * self.train.steps),
            }
            for group in self.method.groups()
        ]

    def _peak(self, group: Group | None = None) -> float:
        """The peak learning rate, of a group or of the run."""
        train, own = self.train, group.learning_rate if group else None
        usual = self.method.learning_rate
        if any(one.role == "denoiser" for one in self.method.groups()):
            usual = propose.rate(usual, self.family.denoiser)
        return optimizers.peak(train.optimizer, usual, train.learning_rate, own)

    def _check_resolution(self) -> None:
        """Sizes that the base can work with; the base's own when none is asked for."""
        self.resolution = self.train.resolution or self.family.resolution
        multiple = self.family.multiple
        if self.resolution % multiple:
            near = max(1, round(self.resolution / multiple)) * multiple
            raise Usage(
                f"resolution {self.resolution} does not fit the base {self.ask.base.name}",
                why=f"it must be a multiple of {multiple}",
                fix=f"for example --resolution {near}",
            )

    # Encode.

    def _encode(self) -> None:
        """Photos and captions to what the loop reads."""
        encoder = Encoder(
            self.ask.base,
            self.family,
            self.train,
            self.ask.store,
            self.accelerator.device,
            self.resolution,
            live_text=not self._frozen_text(),
        )
        lesson = self._lesson()
        self.photos = [sample.path.name for sample, *_ in lesson.subjects]
        self.encoded = encoder.encode(lesson, self._global_batch())
        families.release(self.family, self._frozen_text(), keep=bool(self.train.preview_every))

    def _frozen_text(self) -> bool:
        """Whether the text encoders have done their work once all is encoded."""
        return "text" not in self.method.live()

    def _lesson(self) -> Lesson:
        """The photos of all sets, and what keeps their classes as they were."""
        from dreamtune.data import dataset

        subjects = [
            (sample, one.repeats, classes.prompt_of(self.train, one.class_word))
            for one in self.ask.sets
            for sample in one.samples()
        ]
        others = [sample for a in self.ask.classes for sample in dataset.read(a.path)]
        return Lesson(subjects, others, taught=self.train.prior == "teacher")

    def _global_batch(self) -> int:
        train = self.train
        return train.batch * train.accumulation * self.accelerator.num_processes

    def _batches(self, step: int) -> list[dict[str, Any]]:
        """This process's micro-batches of one update."""
        from dreamtune.data.batches import CLASS, SUBJECT, TEACHER, Chance, make_batch

        table, prior, train = self.encoded.table, self.encoded.prior, self.train
        picks = self.encoded.order.picks(step)
        kept = prior.picks(step) if prior else []
        shares = {
            SUBJECT: train.subject_weight_at(step),
            CLASS: train.prior_weight,
            TEACHER: train.prior_weight,
        }
        shares = {role: share / len(picks) for role, share in shares.items()}
        size, rank = self.train.batch, self.accelerator.process_index
        starts = range(rank * size, len(picks), size * self.accelerator.num_processes)
        some = [picks[a : a + size] + kept[a : a + size] for a in starts]
        chance = Chance(train.caption_dropout, train.noise_offset)
        return [make_batch(table, rows, train.seed, shares, chance) for rows in some]

    def _rehearse(self) -> None:
        """Try a step, and say what the run will take; Resources when it cannot fit."""
        from dreamtune.stages.forecast import Rehearsal, forecast

        self.objective.train()
        batch, context = self._batches(0)[0], self.accelerator.autocast
        rehearsal = Rehearsal(self.objective, batch, context, self._count())
        found = forecast(rehearsal, self.train, self.ask.method.name, self.ask.store.path)
        if self.draft:
            self._rehearse_saving(self.draft.path / f".rehearsal.tmp-{os.getpid()}")
        console.say(f"{self.train.steps} updates will take {found}")

    def _rehearse_saving(self, scratch: Path) -> None:
        """Save all that will be saved once, so that what cannot be is known before step 1."""
        try:
            self._export(scratch, 0)
            self._checkpoint(0, scratch)
            if self.train.preview_every:
                self._preview(0, scratch)
        finally:
            fsops.discard(scratch)

    # Step.

    def _step(self) -> None:
        """Updates from the checkpoint to the end; saves on the way and on a signal."""
        from dreamtune import loop

        train = self.train
        start = 0
        if self.checkpoint:
            start = checkpoints.step_of(self.checkpoint)
            checkpoints.restore(self.checkpoint, self.parameters, self.optimizer, **self._beside())
            console.say(f"going on after step {start} of {train.steps}")
        log = Log(self._folder / "log.jsonl" if self.draft else None, start, self._showed)
        heard = Heard(self.wishes, self.accelerator)
        self.objective.train()
        steps = loop.train(
            self.objective,
            self.optimizer,
            self._batches,
            accelerator=self.accelerator,
            rate=self._rate,
            steps=range(start, train.steps),
            seed=train.seed,
            clip=train.clip,
        )
        saved = time.monotonic()
        with console.progress(train.steps, "training", start) as bar:
            for step in steps:
                n, now = step.number, time.monotonic()
                if self.average:
                    self.average.update(n)
                with self._state_kept(n):
                    log.add(step)
                    bar.advance(1, **log.shown)
                    if self.draft:
                        self._once_in_a_while(n)
                wishes = heard.now()
                due = n % self.ask.checkpoint_every == 0 or now - saved > CHECKPOINT_SECONDS
                if n < train.steps and (due or wishes):
                    self.wishes.save = False
                    log.flush()
                    self._checkpoint(n)
                    saved = now
                    if wishes.end:
                        processes.wait()  # for the first, which saves
                        raise Interrupted(
                            wishes.end,
                            f"interrupted, step {n} of {train.steps} is saved",
                            fix="run the same command with --resume to go on",
                        )
        log.flush()
        self.final_loss = log.shown.get("loss")

    def _showed(self, step: int) -> str:
        """The photos of an update."""
        picks = self.encoded.order.picks(step - 1)
        return ", ".join(dict.fromkeys(self.photos[pick.sample] for pick in picks))

    @property
    def _schedule(self) -> str:
        return self.train.schedule or ("constant" if self._averages else "cosine")

    def _rate(self, step: int) -> float:
        train = self.train
        return schedules.factor(self._schedule, step, train.steps, train.warmup, train.cycles)

    def _once_in_a_while(self, step: int) -> None:
        """Previews, and adapters to try."""
        train = self.train
        if train.preview_every and step % train.preview_every == 0:
            self._preview(step, self._folder / "previews")
        if train.save_every and step % train.save_every == 0 and step < train.steps:
            self._export(self._folder / "steps" / f"{step:06d}", step)

    def _preview(self, step: int, folder: Path) -> None:
        with self._exported():
            preview(self.family, self.concepts[0], folder, step, self.resolution, self.train.seed)

    def _checkpoint(self, step: int, folder: Path | None = None) -> None:
        if self.draft:
            folder = folder or self._folder / "checkpoints"
            state = self.parameters, self.optimizer, self.machine
            checkpoints.save(folder, step, *state, **self._beside())

    def _beside(self) -> dict[str, Any]:
        """What a checkpoint holds beside parameters and optimizer."""
        average = self.average.values if self.average else None
        return {"average": average, "scaler": self.accelerator.scaler}

    @contextlib.contextmanager
    def _exported(self) -> Iterator[None]:
        """Inside, the weights are those that are exported, and nothing drops out."""
        from dreamtune import ema

        self.objective.eval()
        optimizer = self.optimizer if self._averages else None
        with ema.exported(self.parameters, self.average, optimizer):
            yield
        self.objective.train()

    # Save.

    def _export(self, folder: Path, step: int) -> None:
        """The files that other tools load. NonFinite, and nothing written, when a weight is."""
        train = self.train
        facts = Facts(
            size=(self.resolution, self.resolution),
            training={
                "seed": train.seed,
                "learning_rate": self._peak(),
                "max_train_steps": train.steps,
                "num_train_images": len(self.photos),
                "lr_scheduler": self._schedule,
                "optimizer": train.optimizer,
            },
        )
        with self._exported():
            checkpoints.require_finite(self.parameters, step)
            for name, content in self.method.export(self.family, self.concepts, facts).items():
                fsops.make_folder((folder / name).parent)
                if isinstance(content, tuple):
                    fsops.write_safetensors(folder / name, *content)
                else:
                    fsops.write_json(folder / name, content)

    def _describe(self) -> None:
        """adapter.json, what sampling must know, and the recipe that makes the run again."""
        known = ("identifier", "class_word", "bindings")
        facts = {
            "schema": 1,
            "method": self.ask.method.name,
            "options": dataclasses.asdict(self.ask.method.options),
            "family": self.family.name,
            "base": self.ask.base.name,
            "base_hash": self.ask.recipe["base_hash"],
            "overrides": self.ask.base.record() if isinstance(self.ask.base, Overridden) else {},
            "concepts": [{k: getattr(c, k) for k in known} for c in self.concepts],
            "resolution": self.resolution,
            "steps": self.train.steps,
        }
        fsops.write_json(self._folder / "adapter.json", facts)
        tables = {k: self.ask.recipe[k] for k in ("train", "method")}
        fsops.write_text(self._folder / "recipe.toml", recipe.dumps(tables))

    def _count(self) -> int:
        return sum(p.numel() for p in self.parameters.values())


def _import_libraries() -> None:
    """The slow imports, by themselves so that the run's times name them."""
    import accelerate
    import peft

    assert accelerate and peft
    devices.quiet_libraries()


def _first(*values: Any) -> Any:
    return next(v for v in values if v is not None)
