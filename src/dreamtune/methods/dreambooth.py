"""DreamBooth (Ruiz et al., arXiv:2208.12242): the whole denoiser learns the concept."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Usage
from dreamtune.methods import Concept, Facts, Files, Group, Weights, _options, _thaw, _words
from dreamtune.settings import option

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.families import Family


@dataclass(frozen=True)
class Options:
    """The denoiser is always trained, in fp32 under autocast."""

    train_text: bool = _options.train_text()
    text_learning_rate: float | None = _options.text_learning_rate()
    unfreeze: str | None = _options.unfreeze()
    unfreeze_denoiser: str | None = _options.unfreeze_denoiser()
    save_precision: str = option(
        "fp32", rare=True, choices=("fp32", "fp16", "bf16"), help="Of the weights that are saved."
    )

    def __post_init__(self) -> None:
        _thaw.check(self.unfreeze, self.unfreeze_denoiser, self.train_text)


class Method:
    """Every weight of the denoiser, and with `train_text` of the CLIP text encoders."""

    learning_rate = 5e-6
    views = 50

    def __init__(self, options: Options) -> None:
        self.options = options

    def live(self) -> set[str]:
        return {"denoiser", "text"} if self.options.train_text else {"denoiser"}

    def attach(
        self, family: Family, concepts: Sequence[Concept], seed: int, teacher: bool = False
    ) -> None:
        """Bind the identifiers and make fp32 master weights of what is trained."""
        _words.bind(family, concepts)
        self._denoiser = family.denoiser
        self._text = _words.clip_stacks(family) if self.options.train_text else []
        modules = [self._denoiser, *(stack.encoder for stack in self._text)]
        self._untrained = [copy.deepcopy(module) for module in modules] if teacher else []
        for module in modules:
            module.float().requires_grad_(True)

    @contextmanager
    def teacher(self, family: Family) -> Iterator[None]:
        """The copies that were kept, in the base's own precision."""
        assert self._untrained, "attach(teacher=True) keeps them"
        trained = [stack.encoder for stack in self._text]
        self._put(family, *self._untrained)
        try:
            yield
        finally:
            self._put(family, self._denoiser, *trained)

    def _put(self, family: Family, denoiser: Any, *encoders: Any) -> None:
        family.denoiser = denoiser
        for stack, encoder in zip(self._text, encoders, strict=True):
            stack.encoder = encoder

    def groups(self) -> list[Group]:
        options = self.options
        found = _thaw.split(dict(self._denoiser.named_parameters()), options.unfreeze_denoiser)
        groups = [Group("denoiser", part, start=start) for start, part in found]
        for stack in self._text:
            named = {f"{stack.name}.{n}": p for n, p in stack.encoder.named_parameters()}
            for start, part in _thaw.split(named, options.unfreeze):
                rate = options.text_learning_rate
                groups.append(Group("text", part, learning_rate=rate, start=start))
        return groups

    def export(self, family: Family, concepts: Sequence[Concept], facts: Facts) -> Files:
        """Parts of a diffusers folder, to stand in for the base's own."""
        files: Files = {}
        for path, module in self._parts(family).items():
            tensors = _saved(module, self.options.save_precision)
            files[path] = tensors, {"format": "pt"}  # transformers wants to be told
            files[f"{path.partition('/')[0]}/config.json"] = _config(module)
        return files

    def load(
        self, family: Family, concepts: Sequence[Concept], files: Weights, weight: float
    ) -> None:
        """Put the trained weights in: (1 - weight) * base + weight * trained."""
        from dreamtune.formats import lora

        _words.bind_again(family, concepts)
        self._text = _words.clip_stacks(family) if self.options.train_text else []
        for path, module in self._parts(family).items():
            tensors, own = files[path][0], dict(_named(module, live=True))
            wanted, base = _shapes(tensors), _shapes(own)
            if misfits := lora.misfits(wanted, base) or lora.misfits(base, wanted):
                raise Usage(
                    f"{concepts[0].name} does not fit the base {family.base}",
                    why=misfits[0],
                    fix="use the base it was trained on",
                )
            for name, tensor in own.items():
                tensor.data = _blend(tensor.data, tensors[name], weight)

    def _parts(self, family: Family) -> dict[str, Any]:
        """What is trained, by the path of its weights in a diffusers folder."""
        denoiser = f"{family.denoiser_name}/diffusion_pytorch_model.safetensors"
        text = {f"{stack.name}/model.safetensors": stack.encoder for stack in self._text}
        return {denoiser: family.denoiser, **text}


def _named(module: Any, live: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The module's tensors as files on the Hub name them; live: its parameters themselves.

    transformers 5 has no `text_model.` level in CLIPTextModel; files and other tools have it.
    """
    for name, tensor in module.state_dict(keep_vars=live).items():
        bare = name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
        yield f"text_model.{name}" if bare else name, tensor


def _saved(module: Any, precision: str) -> dict[str, Tensor]:
    """Copies on the CPU, floating point ones in `precision`."""
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    return {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None, copy=True)
        for name, tensor in _named(module)
    }


def _config(module: Any) -> dict[str, Any]:
    """The module's config.json, which does not say where it was loaded from."""
    written = module if hasattr(module, "to_json_string") else module.config
    facts = json.loads(written.to_json_string())
    facts.pop("_name_or_path", None)
    return facts if written is module else {"architectures": [type(module).__name__], **facts}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _blend(base: Tensor, trained: Tensor, weight: float) -> Tensor:
    """(1 - weight) * base + weight * trained, summed in fp32 and cast once."""
    trained = trained.to(base.device)
    if weight != 1:  # at 1 exactly what was trained
        trained = base.float().lerp(trained.float(), weight)
    return trained.to(base.dtype)
