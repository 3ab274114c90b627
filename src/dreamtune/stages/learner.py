"""What learns: a base with a method in it, the objective and the optimizer, on the device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import console, devices, optimizers, plugins, recipe
from dreamtune.errors import Usage
from dreamtune.methods import Concept, Group, Method
from dreamtune.stages import propose, resume

if TYPE_CHECKING:
    from dreamtune.ema import Average
    from dreamtune.objective import Weighting
    from dreamtune.stages.train import Run


class Learner:
    """Loads all of it. Usage when the settings do not fit the base or the machine."""

    def __init__(self, ask: Run, checkpoint: Path | None) -> None:
        self.ask, self.train, train = ask, ask.train, ask.train
        precision = self._start_accelerator()
        devices.make_exact(train.tf32)
        self.machine = self._machine(precision, checkpoint)
        self.family = devices.load(ask.base, str(self.accelerator.device), precision)
        self.resolution = self._fitting_resolution()
        self._tune()
        self._attach()
        self._prepare()
        self.average = self._average()
        console.say(f"learning rate {self.peak():.2g} (--learning-rate)")
        for concept in self.concepts:
            words = ", ".join(sorted({b["word"] for b in concept.bindings}))
            console.say(f"{concept.identifier} is {words!r} to {ask.base.name}")

    def _start_accelerator(self) -> str:
        """The accelerator for the device that is asked for; its precision."""
        from accelerate import Accelerator
        from accelerate.utils import GradientAccumulationPlugin

        device = devices.choose(self.train.device)
        precision = devices.choose_precision(self.train.precision, device)
        if precision == "fp16" and device == "cpu":
            raise Usage("fp16 does not train on a CPU", fix="use --precision bf16 or fp32")
        mixed = "no" if precision == "fp32" else precision
        # Accumulation is ours (loop.train); the environment must not add another one.
        plugin = GradientAccumulationPlugin(num_steps=1)
        self.accelerator = Accelerator(
            mixed_precision=mixed, cpu=device == "cpu", gradient_accumulation_plugin=plugin
        )
        return precision

    def _attach(self) -> None:
        """The method in the base."""
        ask, train = self.ask, self.train
        module = plugins.load(recipe.METHODS, ask.method.name)
        self.method: Method = module.Method(ask.method.options)
        taught = train.prior == "teacher"
        more: dict[str, Any] = {}
        if ask.origin:
            more["start"] = ask.origin.start(self.family, ask.concepts)
        self.method.attach(self.family, ask.concepts, train.seed, taught, **more)
        if train.gradient_checkpointing:
            devices.save_memory(self.family, self.method.live())
        self.concepts = [self._bound(concept) for concept in ask.concepts]
        self.parameters = {
            f"{group.role}.{name}": p
            for group in self.method.groups()
            for name, p in group.parameters.items()
        }

    def _machine(self, precision: str, checkpoint: Path | None) -> dict[str, Any]:
        """What the bits of the updates depend on; Usage when a resumed run had others."""
        machine: dict[str, Any] = {
            "device": devices.model_of(self.accelerator.device),
            "precision": precision,
            "processes": self.accelerator.num_processes,
        }
        if checkpoint:
            drift = resume.drifted(checkpoint, machine, self.ask.allow_drift)
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

    def _prepare(self) -> None:
        """Objective and optimizer as Accelerate wants them: on the device, and in several processes
        in step.
        """
        from accelerate.utils import DistributedDataParallelKwargs

        from dreamtune import losses, perceptual
        from dreamtune.objective import Objective

        looks = self.train.loss == "perceptual"
        objective = Objective(
            self.family,
            self.method.live(),
            losses.l2 if looks else getattr(losses, self.train.loss),
            functools.partial(self.method.teacher, self.family),
            self._weighting(),
            perceptual.load(self.accelerator.device) if looks else None,
        )
        optimizer = optimizers.make(self.train.optimizer, self._groups())
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
        default = DECAY if train.steps >= LONG and not self.averages else 0.0
        decay = default if train.ema is None else train.ema
        device = None if train.ema_device == "same" else train.ema_device
        return Average(self.parameters, decay, device) if decay else None

    @property
    def averages(self) -> bool:
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
                "peak": self.peak(group),
                "lr": self.peak(group),
                "weight_decay": _first(group.weight_decay, self.train.weight_decay),
                "start": round(group.start * self.train.steps),
            }
            for group in self.method.groups()
        ]

    def peak(self, group: Group | None = None) -> float:
        """The peak learning rate, of a group or of the run."""
        train, own = self.train, group.learning_rate if group else None
        usual = self.method.learning_rate
        if any(one.role == "denoiser" for one in self.method.groups()):
            usual = propose.rate(usual, self.family.denoiser)
        return optimizers.peak(train.optimizer, usual, train.learning_rate, own)

    def _fitting_resolution(self) -> int:
        """A size that the base can work with; the base's own when none is asked for."""
        resolution, multiple = self.train.resolution or self.family.resolution, self.family.multiple
        if resolution % multiple:
            near = max(1, round(resolution / multiple)) * multiple
            raise Usage(
                f"resolution {resolution} does not fit the base {self.ask.base.name}",
                why=f"it must be a multiple of {multiple}",
                fix=f"for example --resolution {near}",
            )
        return resolution

    def beside(self) -> dict[str, Any]:
        """What a checkpoint holds beside parameters and optimizer."""
        average = self.average.values if self.average else None
        return {"average": average, "scaler": self.accelerator.scaler}

    @contextlib.contextmanager
    def exported(self) -> Iterator[None]:
        """Inside, the weights are those that are exported, and nothing drops out."""
        from dreamtune import ema

        self.objective.eval()
        optimizer = self.optimizer if self.averages else None
        with ema.exported(self.parameters, self.average, optimizer):
            yield
        self.objective.train()

    def count(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.parameters.values())


def _first(*values: Any) -> Any:
    return next(v for v in values if v is not None)
