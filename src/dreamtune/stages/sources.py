"""Adapters to work on, wherever they are: in the store, or any file or folder of any program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune import bases, console
from dreamtune.artifacts import Artifact
from dreamtune.bases import Base, Tiny
from dreamtune.errors import Damaged, NonFinite, NotFound, Usage
from dreamtune.formats import adapters, target
from dreamtune.formats.ldm import Blocks
from dreamtune.names import parse_ref
from dreamtune.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.formats.lora import Adapter, Shape, Update
    from dreamtune.stages.models import Model

Words = dict[str, dict[str, "Tensor"]]  # word -> text encoder -> (n, dim)
LORA, FACTS = "pytorch_lora_weights.safetensors", "adapter.json"


@dataclass(frozen=True)
class Ground:
    """A base as far as adapters need it: weights by (component, module), and how it is named."""

    name: str
    weight: Callable[[str, str], Tensor]
    shapes: dict[str, Shape]  # of the weight of every "component.module"
    blocks: Blocks
    layout: str  # kohya's, a key of formats.kohya.LAYOUTS

    def check(self, source: Source) -> None:
        """Usage when an adapter does not fit, before any work."""
        from dreamtune.formats.lora import misfits, signature

        if problems := misfits(signature(source.adapter), self.shapes):
            why = f"{problems[0]}" + (f" (and {len(problems) - 1} more)" if problems[1:] else "")
            raise self._unfit(source, why)
        for word, vectors in source.words.items():
            widths = {part: tensor.shape[1] for part, tensor in vectors.items()}
            if widths.items() - self.widths.items():
                raise self._unfit(source, f"the vectors of {word} are of other text encoders")

    @property
    def widths(self) -> dict[str, int]:
        """Of the vectors that the text encoders read."""
        ends = (".token_embedding", ".shared")
        return {n.split(".")[0]: s[1] for n, s in self.shapes.items() if n.endswith(ends)}

    def _unfit(self, source: Source, why: str) -> Usage:
        of = f" ({target.NAMES[source.base]})" if source.base else ""
        fix = f"use the base that it is for{of}: --base"
        return Usage(f"{source.label} does not fit the base {self.name}", why=why, fix=fix)


def ground(base: Model | Base | Tiny) -> Ground:
    """What adapters need of a base, from its files; a trial base has none."""
    from dreamtune import families
    from dreamtune.formats.lora import DENOISERS, TEXT_ENCODERS, canonical

    if isinstance(base, Tiny):
        raise Usage(f"{base.name} has no files", fix="name a base that has")
    family: Any = families.of(base)  # type: ignore[arg-type]
    parts = [part for part in (*DENOISERS, *TEXT_ENCODERS) if part in base.parts]
    stored = {
        (part, canonical(part, name.removesuffix(".weight"))): tensor
        for part in parts
        for name, tensor in base.tensors(part).items()
        if name.endswith(".weight") and len(tensor.final_shape) in (2, 4)
    }
    return Ground(
        base.name,
        lambda part, module: stored[part, module].read(),
        {f"{part}.{module}": t.final_shape for (part, module), t in stored.items()},
        Blocks.of(base.config("unet")) if "unet" in base.parts else Blocks(),
        family.lora_layout,
    )


def base_of(facts: Mapping[str, Any]) -> Base | Tiny:
    """The base that an adapter of the store was trained on, from its adapter.json."""
    own = facts.get("overrides", {}).get("base_hash", facts["base_hash"])
    return bases.again(facts["base"], own)


@dataclass(frozen=True)
class Source:
    """An adapter and what is known of it. `weight`: as in "rex@0.8"."""

    label: str
    name: str  # what its files are called
    adapter: Adapter
    words: Words
    metadata: dict[str, str]
    weight: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)  # adapter.json of our own

    @property
    def base(self) -> str | None:
        """The base it is for by its shapes, a key of target.NAMES."""
        from dreamtune.formats.lora import signature

        widths = {v.shape[1] for vectors in self.words.values() for v in vectors.values()}
        return target.of_adapter(signature(self.adapter)) or target.of_words(widths)

    def only_words(self) -> Source:
        """The words without what changes weights; Usage when there are none."""
        if not self.words:
            raise Usage(f"{self.label} has no words")
        return replace(self, adapter={})

    @property
    def is_dora(self) -> bool:
        updates = (u for modules in self.adapter.values() for u in modules.values())
        return any(update.magnitude is not None for update in updates)


def find(store: Store, text: str, blocks: Blocks = Blocks()) -> Source:
    """The adapter that `text` names: a file, a PEFT folder, or an adapter of the store.

    `blocks`: of the UNet it is for, as Stability's numbering needs them. NotFound, Unsafe, Damaged,
    or NonFinite when it has values that are no finite numbers.
    """
    ref, options, weight = parse_ref(text)
    if options:
        raise Usage(f"{text!r} has an option, {min(options)!r}", fix="name a file or an adapter")
    path = file_of(ref)
    source = of_file(path, blocks) if path else _of_artifact(store.resolve(ref, "adapter"))
    return told(replace(source, weight=1.0 if weight is None else weight))


def file_of(ref: str) -> Path | None:
    """The file or PEFT folder that a reference is; None when it is an adapter of the store."""
    path = Path(ref).expanduser()
    if path.exists():
        return None if (path / FACTS).is_file() else path
    if path.suffix.lower() == ".safetensors":
        raise NotFound(f"there is no file {path}")
    return None


def of_file(path: Path, blocks: Blocks) -> Source:
    """What a file or PEFT folder holds; errors as `find`."""
    found = adapters.read_adapter(path, blocks)
    name = path.stem if path.is_file() else path.name
    words = {word or name: vectors for word, vectors in found.words.items()}
    return _finite(Source(path.name, name, found.adapter, words, found.metadata))


def _of_artifact(artifact: Artifact) -> Source:
    """What training saved: diffusers' file has the updates, the others have words and metadata."""
    artifact.check(deep=True)
    facts = artifact.read_json(FACTS)
    if not list(artifact.path.glob("*.safetensors")):
        raise Usage(
            f"{artifact.label} is a whole model ({facts['method']}), and no adapter",
            fix="`dreamtune extract` makes a LoRA of it",
        )
    adapter: Adapter = {}
    words: Words = {}
    metadata: dict[str, str] = {}
    if (artifact.path / LORA).is_file():
        adapter = adapters.read_adapter(artifact.path / LORA).adapter
    for file in sorted(artifact.path.glob(f"{artifact.name}*.safetensors")):
        found, said = adapters.read_words(file)
        words |= {word or file.stem: vectors for word, vectors in found.items()}
        metadata = metadata or said
    return _finite(Source(artifact.label, artifact.name, adapter, words, metadata, facts=facts))


def _finite(source: Source) -> Source:
    """NonFinite when an update would make weights that are no numbers; Damaged when it is empty."""
    if not source.adapter and not source.words:
        raise Damaged(f"{source.label} holds no adapter")
    for component, modules in source.adapter.items():
        for module, update in modules.items():
            _require_finite(source.label, f"{component}.{module}", _tensors(update))
    for word, vectors in source.words.items():
        _require_finite(source.label, str(word), list(vectors.values()))
    return source


def told(source: Source) -> Source:
    """The same; one of zeros, which does no harm and nothing else, is spoken of."""
    if source.adapter and not source.words and _changes_nothing(source.adapter):
        console.warn(f"{source.label} changes nothing: every update in it is zero")
    return source


def _tensors(update: Update) -> list[Tensor]:
    """The factors of an update."""
    tensors = [v for v in vars(update).values() if hasattr(v, "isfinite")]
    return tensors + [t for v in vars(update).values() if isinstance(v, tuple) for t in v]


def _changes_nothing(adapter: Adapter) -> bool:
    """Whether each update has a factor of zeros, as before the first step of its training; of a
    DoRA the magnitude alone may have learned.
    """
    updates = [update for modules in adapter.values() for update in modules.values()]
    return all(
        update.magnitude is None and any(not bool(t.any()) for t in _tensors(update))
        for update in updates
    )


def _require_finite(label: str, name: str, tensors: list[Tensor]) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise NonFinite(
            f"{label} has values that are no finite numbers",
            why=f"in {name}",
            fix="use an earlier save, or train with a lower learning rate",
        )
