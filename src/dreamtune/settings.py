"""What a stage can be told: one frozen dataclass a stage, read by `recipe` and `flags`.

Every field is an `option`. Its name is the recipe key, its type is checked, its default is what
happens when nobody says anything; None means "decided at run time". Types: int, float, str, bool,
tuple[int | float | str, ...], each also `| None`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import Usage

_WEIGHT = r"\d{1,4}(\.\d+)?"
IDENTIFIER = re.compile(r"\[[A-Za-z0-9_-]+\]")  # "[V01]", in captions and prompts alike


def option(
    default: Any,
    *,
    help: str,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    multiple: int | None = None,
    choices: Sequence[Any] | None = None,
    flag: str | None = "",
    short: str = "",
    alias: Sequence[str] = (),
    rare: bool = False,
) -> Any:
    """A dataclass field that a recipe can set and, unless `flag=None`, a flag too.

    low, high:    inclusive range of a number (of every item, for a tuple)
    above, below: exclusive range, for a learning rate or a dropout
    multiple:     the number must be a multiple of this
    flag:         "" is the field's name with dashes; None leaves it to recipes and --set
    alias:        other names of the flag, accepted but not shown
    rare:         the flag is left out of --help; `dreamtune recipe dump` lists it
    """
    rules: dict[str, Any] = {"low": low, "high": high, "above": above, "below": below}
    rules |= {"multiple": multiple, "choices": choices}
    metadata = {k: v for k, v in rules.items() if v is not None}
    metadata |= {"help": help, "flag": flag, "short": short, "alias": tuple(alias)}
    metadata["rare"] = rare
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Prep:
    """The [prep] table: from a folder of photos to a prep artifact."""

    class_word: str | None = option(
        None,
        flag="--class",
        alias=("--class-word",),
        help="What the photos show: dog, mug, drawing. [guessed]",
    )
    identifier: str = option(
        "[V01]", alias=("--placeholder-token",), help="The word that will stand for your concept."
    )
    kind: str = option(
        "subject",
        choices=("subject", "style"),
        help="A style has no similarity filter: its photos may show anything.",
    )
    threshold: str = option(
        "0.75",
        help="Similarity below which a photo is set aside, 0 to 1, or auto: far from the median.",
    )
    keep: tuple[str, ...] = option((), help="Keep this file whatever is found; * matches.")
    drop: tuple[str, ...] = option((), help="Set this file aside; * matches.")
    keep_duplicates: bool = option(False, help="Keep copies and near-copies too.")
    blur: float = option(
        0.09, low=0, high=1, help="Sharpness below which a photo is set aside; 0 turns it off."
    )
    caption: str | None = option(
        None,
        help="Caption template with {identifier} and {class}. [a photo of {identifier} {class}]",
    )
    caption_ext: str | None = option(
        None, alias=("--caption-extension",), help="Ending of caption files. [.txt .caption .json]"
    )
    caption_missing: str = option(
        "error",
        choices=("error", "template", "empty"),
        help="When only some photos have a caption file.",
    )
    caption_prefix: str = option("", help="Put this before every caption.")
    caption_suffix: str = option("", help="Put this after every caption.")
    caption_replace: tuple[str, ...] = option((), help="Change captions: 'old=>new'.")
    captioner: str | None = option(
        None, help="Program that prints a caption for the picture file it is given."
    )
    max_size: int = option(2048, low=64, high=16384, help="Long side in pixels; larger is scaled.")
    min_size: int = option(
        64, low=1, high=16384, help="Short side in pixels; smaller is set aside."
    )
    max_aspect: float = option(4.0, low=1, help="Long side over short; more is set aside.")
    background: str = option(
        "grey",
        choices=("grey", "white", "black"),
        alias=("--alpha",),
        help="What shows through transparency.",
    )
    frames: str = option(
        "first",
        choices=("first", "reject"),
        help="Animations and files of several pages: take the first, or set aside.",
    )
    follow_symlinks: bool = option(False, help="Read links that lead out of the folder.")
    clip: str = option(
        "builtin",
        help="Image encoder: builtin, or open_clip's name, as ViT-B-32:laion2b_s34b_b79k.",
    )
    max_megapixels: float = option(
        100.0, above=0, help="Refuse larger pictures from their header.", flag=None
    )
    timeout: float = option(
        10.0, above=0, help="Seconds that decoding one file may take.", flag=None
    )
    memory: float = option(1.5, above=0, help="GiB that decoding one file may take.", flag=None)
    workers: int | None = option(None, low=1, help="Decoding processes. [cores]")

    def __post_init__(self) -> None:
        if not IDENTIFIER.fullmatch(self.identifier):
            raise Usage(
                f"identifier = {self.identifier!r} must be letters and digits in brackets",
                why="training and sampling find it by them",
                fix="for example [V01]",
            )
        if self.threshold != "auto" and not _is_share(self.threshold):
            raise Usage(f"threshold = {self.threshold!r} must be a number from 0 to 1, or auto")


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


# What may be said of a base, in training and in sampling (bases.overrides).
PREDICTION: dict[str, Any] = {
    "choices": ("epsilon", "v_prediction"),
    "alias": ("--prediction-type",),
    "rare": True,
    "help": "What the base predicts, where its files say it wrong.",
}
ZERO_SNR: dict[str, Any] = {
    "alias": ("--rescale-betas-zero-snr",),
    "rare": True,
    "help": "The base's noise ends in pure noise (zero terminal SNR).",
}
CLIP_SKIP: dict[str, Any] = {
    "low": 1,
    "high": 24,
    "rare": True,
    "help": "Read text at this layer from CLIP's end, as A1111 counts; 1 is the usual one.",
}
VAE: dict[str, Any] = {
    "alias": ("--pretrained-vae-model-name-or-path",),
    "rare": True,
    "help": "A folder or base whose autoencoder is used instead.",
}


@dataclass(frozen=True)
class Train:
    """The [train] table: what every method has in common."""

    base: str = option(
        "mini",
        alias=("--pretrained-model-name-or-path",),
        help="Base model: a name of `dreamtune base list`, a path, or a hub id.",
    )
    start: str | None = option(
        None,
        flag="--from",
        alias=("--network-weights",),
        help="Go on from this adapter: one of the store, or a LoRA file.",
    )
    replay: float = option(
        0.3,
        low=0,
        below=1,
        rare=True,
        help="With --from: share of pictures that are photos which the adapter knows.",
    )
    steps: int = option(
        0,
        low=0,
        high=1_000_000,
        alias=("--max-train-steps",),
        help="Optimizer updates; 0 takes them from the number of photos.",
    )
    batch: int = option(
        4, low=1, high=4096, alias=("--train-batch-size",), help="Pictures at once on each device."
    )
    accumulation: int = option(
        1,
        low=1,
        high=4096,
        alias=("--gradient-accumulation-steps",),
        help="Batches that make one update.",
    )
    learning_rate: float | None = option(
        None, above=0, high=10, alias=("--lr",), help="Peak rate. [the method's]"
    )
    optimizer: str = option(
        "adamw",
        choices=("adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule-free"),
        help="What makes updates of gradients.",
    )
    schedule: str | None = option(
        None,
        choices=("cosine", "restarts", "linear", "constant"),
        alias=("--lr-scheduler",),
        help="Course of the learning rate. [cosine; constant with schedule-free]",
    )
    cycles: int = option(3, low=1, high=1000, rare=True, help="Parts of the schedule restarts.")
    warmup: int = option(
        0, low=0, alias=("--lr-warmup-steps",), help="Updates over which the rate rises."
    )
    weight_decay: float = option(
        0.01, low=0, high=1, rare=True, help="The optimizer's weight decay."
    )
    clip: float = option(
        1.0, above=0, alias=("--max-grad-norm",), rare=True, help="Largest norm of the gradient."
    )
    ema: float | None = option(
        None,
        low=0,
        below=1,
        alias=("--ema-decay",),
        rare=True,
        help="Decay of the average of weights that is exported; 0: none. [0.999 from 2000 steps]",
    )
    ema_device: str = option(
        "same",
        choices=("same", "cpu"),
        rare=True,
        help="Where the average is kept; the CPU saves GPU memory and costs time.",
    )
    loss: str = option(
        "l2",
        choices=("l2", "huber", "perceptual"),
        help="How errors are measured; perceptual is partly by how the picture looks.",
    )
    min_snr_gamma: float | None = option(
        None,
        above=0,
        high=1000,
        alias=("--snr-gamma",),
        help="Largest SNR by which errors are weighted, usually 5. [not weighted]",
    )
    v_target: bool = option(
        False, rare=True, help="Measure errors in v, on a base that predicts noise."
    )
    prior: str = option(
        "none",
        choices=("none", "images", "teacher"),
        help="Keep the class as it was: by class images, or by what the base predicts for it.",
    )
    prior_weight: float = option(
        1.0,
        above=0,
        high=100,
        alias=("--prior-loss-weight",),
        rare=True,
        help="Weight of the class.",
    )
    class_images: str | None = option(
        None,
        alias=("--class-data-dir",),
        help="Class images: a folder, or one of the store's. [made by the base]",
    )
    num_class_images: int | None = option(
        None, low=1, high=10_000, rare=True, help="Class images to make. [10 a photo, 40 to 200]"
    )
    class_prompt: str = option(
        "a photo of a {class}", rare=True, help="What class images show, with {class}."
    )
    subject_weight: str = option(
        "1", rare=True, help="Weight of your photos, or its course: 1:2 doubles it."
    )
    resolution: int | None = option(
        None, low=16, high=4096, help="Picture size in pixels. [the base's]"
    )
    variants: int = option(
        4, low=1, high=256, help="Random crops of each photo, encoded once; 1 crops the middle."
    )
    crop_area: tuple[float, ...] = option(
        (0.7, 1.0), above=0, high=1, flag=None, help="Share of the photo that a crop covers."
    )
    jitter: float = option(
        0.2,
        low=0,
        below=1,
        rare=True,
        help="Strength of brightness, contrast and saturation changes.",
    )
    caption_dropout: float = option(
        0.0, low=0, below=1, help="Share of pictures that are shown without their caption."
    )
    noise_offset: float = option(
        0.0, low=0, high=1, rare=True, help="Noise that is even over the picture; 0.1 is usual."
    )
    tracker: str | None = option(
        None,
        choices=("tensorboard", "wandb"),
        alias=("--report-to", "--log-with"),
        rare=True,
        help="Where losses are shown while it runs.",
    )
    tracker_dir: str = option(
        "runs", alias=("--logging-dir",), rare=True, help="Folder of the tracker's files."
    )
    timesteps: str | None = option(
        None,
        choices=("uniform", "logit-normal", "mode", "cosmap"),
        rare=True,
        help="Which noise levels are drawn how often. [uniform; logit-normal in flow models]",
    )
    logit_mean: float = option(
        0.0, low=-5, high=5, rare=True, help="Of logit-normal; more than 0 prefers noise."
    )
    logit_std: float = option(1.0, above=0, high=5, rare=True, help="Of logit-normal.")
    mode_scale: float = option(1.29, low=-1, high=1.75, rare=True, help="Of mode.")
    shift: float | None = option(
        None, above=0, high=100, rare=True, help="Moves a flow's times towards noise. [the base's]"
    )
    guidance: float | None = option(
        None,
        low=0,
        high=100,
        alias=("--guidance-scale",),
        rare=True,
        help="What FLUX.1 dev is told in training. [1]",
    )
    prediction: str | None = option(None, **PREDICTION)
    zero_snr: bool | None = option(None, **ZERO_SNR)
    clip_skip: int | None = option(None, **CLIP_SKIP)
    vae: str | None = option(None, **VAE)
    seed: int = option(0, low=0, high=2**63 - 1, help="Where every random number comes from.")
    precision: str = option(
        "auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        alias=("--mixed-precision",),
        help="Of the frozen weights and the arithmetic; auto is bf16 on a GPU.",
    )
    device: str = option("auto", choices=("auto", "cpu", "cuda"), help="Where it runs.")
    gradient_checkpointing: bool = option(
        False, help="Keep fewer activations: less memory, a third more time."
    )
    tf32: bool = option(
        False,
        alias=("--allow-tf32",),
        rare=True,
        help="Let a GPU round fp32 products; faster where the precision is fp32.",
    )
    preview_every: int | None = option(
        None, low=1, alias=("--validation-steps",), help="Updates between preview pictures."
    )
    save_every: int | None = option(
        None, low=1, help="Updates between adapters to try: --with NAME@step=N."
    )

    def __post_init__(self) -> None:
        if self.ema and self.optimizer == "schedule-free":
            raise Usage("--ema and --optimizer schedule-free both average", fix="leave out --ema")
        if self.v_target and self.min_snr_gamma:
            raise Usage("--v-target and --min-snr-gamma both weight timesteps", fix="choose one")
        if len(self.crop_area) != 2 or self.crop_area[0] > self.crop_area[1]:
            raise Usage(f"crop_area = {list(self.crop_area)} must be [least, most]")
        if not re.fullmatch(rf"{_WEIGHT}(:{_WEIGHT})?", self.subject_weight):
            raise Usage(f"subject_weight = {self.subject_weight!r} must be a number, or FIRST:LAST")
        if self.prior == "none" and (self.class_images or self.num_class_images):
            raise Usage("class images are for prior preservation", fix="add --prior images")
        if "{class}" not in self.class_prompt:
            raise Usage(f"class_prompt = {self.class_prompt!r} must have {{class}} in it")

    def subject_weight_at(self, step: int) -> float:
        """The weight of the subject's photos at update `step`, from FIRST to LAST in a line."""
        first, *rest = [float(number) for number in self.subject_weight.split(":")]
        last = rest[0] if rest else first
        return first + (last - first) * step / max(1, self.steps - 1)


@dataclass(frozen=True)
class Sample:
    """The [sample] table: from an adapter and prompts to pictures."""

    base: str | None = option(None, help="Base model. [the adapter's]")
    count: int | None = option(
        None, low=1, high=10_000, short="-n", help="Pictures of each prompt. [4; 1 in a grid]"
    )
    seed: int = option(
        0, low=0, high=2**32 - 1, help="Seed of the first picture; the next has one more."
    )
    steps: int = option(
        25, low=1, high=1000, alias=("--num-inference-steps",), help="Denoising steps."
    )
    guidance: float = option(
        5.0,
        low=0,
        high=100,
        alias=("--guidance-scale", "--cfg-scale"),
        help="How closely to follow the prompt.",
    )
    negative: str = option("", alias=("--negative-prompt",), help="What to keep out.")
    size: str | None = option(None, help="WIDTHxHEIGHT or one number, in pixels. [the base's]")
    prediction: str | None = option(None, **PREDICTION)
    zero_snr: bool | None = option(None, **ZERO_SNR)
    clip_skip: int | None = option(None, **CLIP_SKIP)
    vae: str | None = option(None, **VAE)
    scheduler: str | None = option(
        None,
        alias=("--sampler", "--sample-sampler"),
        help="By its usual name: ddim, euler a, dpm++ 2m karras, unipc, lcm. [the base's]",
    )
    weight: float = option(
        1.0, low=-10, high=10, help="How strong adapters are, times the @WEIGHT of each."
    )
    strength: float = option(
        0.6, above=0, high=1, help="With --init: share of the steps, so how much changes."
    )
    grid_x: str | None = option(None, help="Columns: a setting and its values, guidance=3,5,7.")
    grid_y: str | None = option(None, help="Rows: another setting, steps=10,25.")
    rescale: float = option(
        0.0,
        low=0,
        high=1,
        alias=("--guidance-rescale",),
        help="Guidance rescale, against pictures too bright or too dark; 0.7 is usual.",
        rare=True,
    )
    batch: int | None = option(None, low=1, high=1024, help="Pictures at once. [by their size]")
    precision: str = option(
        "auto", choices=("auto", "fp32", "bf16", "fp16"), help="auto is fp32 on a CPU, else bf16."
    )
    device: str = option("auto", choices=("auto", "cpu", "cuda"), help="Where it runs.")

    def __post_init__(self) -> None:
        if self.size is not None and not re.fullmatch(r"\d{2,5}(x\d{2,5})?", self.size):
            raise Usage(f"size = {self.size!r} must be WIDTHxHEIGHT, such as 512x768")
