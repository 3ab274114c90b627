"""What is trained: one file per method. A method's `Options` are its recipe table and its flags."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamtune.families import Family
    from dreamtune.formats.lora import Adapter

Weights = dict[str, tuple[dict[str, "Tensor"], dict[str, str]]]  # path -> tensors, metadata
Files = dict[str, tuple[dict[str, "Tensor"], dict[str, str]] | dict[str, Any]]  # or a JSON object


@dataclass(frozen=True)
class Facts:
    """What an exported file says of its training."""

    size: tuple[int, int]  # px
    training: dict[str, Any]  # steps, seed, learning_rate, num_train_images, as kohya's ss_ keys


@dataclass(frozen=True)
class Concept:
    """What is learned: "[V01]", the class it is one of, and the word each tokenizer binds it to.

    An adapter has one or more; all bear its name.
    """

    identifier: str
    class_word: str
    name: str  # of the adapter, and so of its files
    bindings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def trigger(self) -> str:
        """What a prompt for other tools says: the bound word and the class, "sks dog"."""
        return " ".join([*(b["word"] for b in self.bindings[:1]), self.class_word])


def about(concepts: Sequence[Concept], facts: Facts) -> dict[str, Any]:
    """Title, resolution and triggers as ModelSpec wants them."""
    triggers = ", ".join(concept.trigger for concept in concepts)
    return {"title": concepts[0].name, "resolution": facts.size, "trigger_phrase": triggers}


@dataclass(frozen=True)
class Start:
    """An adapter to go on from: updates by component and module (formats.lora), and by identifier
    the rows of words, text encoder -> (vectors, dim).
    """

    name: str
    adapter: Adapter
    words: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    role: str
    parameters: dict[str, nn.Parameter]
    weight_decay: float | None = None  # None: as [train] says
    learning_rate: float | None = None  # peak; None: as [train] says, else the method's
    start: float = 0.0  # share of the run after which they are trained; frozen until then


class Method(Protocol):
    """A method holds its own trainable parameters from `attach` or `load` on."""

    learning_rate: float  # default peak rate
    is_word: bool  # optional: it changes no weights, so `load` is always told the weight 1
    goes_on: bool  # optional: `attach` takes an adapter to start from; see Start
    shape: tuple[str, ...]  # with goes_on: the options that such an adapter decides
    views: int  # times that a photo is seen, when the number of updates is not given

    def __init__(self, options: Any) -> None: ...

    def live(self) -> set[str]:
        """The parts that run in the loop, of {"denoiser", "text"}; the others are encoded once."""

    def attach(
        self,
        family: Family,
        concepts: Sequence[Concept],
        seed: int,
        teacher: bool = False,
        start: Start | None = None,
    ) -> None:
        """Bind the identifiers, freeze the base, insert what is trained (fp32).

        teacher: `teacher()` will be entered, so a method that changes the base keeps a copy.
        start: an adapter to begin with, where the method `goes_on`; Usage when it does not fit the
            base.
        """

    def teacher(self, family: Family) -> AbstractContextManager[None]:
        """While entered, `family.predict` and `encode_text` are the untrained base's."""

    def groups(self) -> list[Group]:
        """What the optimizer steps and checkpoints hold."""

    def export(self, family: Family, concepts: Sequence[Concept], facts: Facts) -> Files:
        """The files that other tools load, by path in the adapter: NAME.safetensors, or one folder
        down, as unet/config.json.
        """

    def load(
        self, family: Family, concepts: Sequence[Concept], files: Weights, weight: float
    ) -> None:
        """Put an exported adapter into a base for sampling, `weight` times as strong.

        Modules get new tensors and none is written in, so that the base can be had again.
        """
