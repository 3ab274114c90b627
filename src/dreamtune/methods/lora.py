"""Low-rank adaptation of the denoiser (Hu et al., arXiv:2106.09685), on PEFT's layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Usage
from dreamtune.methods import Concept, Facts, Files, Group, Weights, _words, about
from dreamtune.settings import option

if TYPE_CHECKING:
    from dreamtune.families import Family
    from dreamtune.formats.lora import LoraWeights


@dataclass(frozen=True)
class Options:
    """W + alpha / rank * up @ down, for each targeted module."""

    rank: int = option(16, low=1, high=1024, help="rank of the update; 4 to 128 are usual")
    alpha: float | None = option(
        None, above=0, alias=("--network-alpha",), help="scale is alpha / rank (default: rank)"
    )
    dropout: float = option(0.0, low=0, below=1, help="dropout before the update")
    targets: str = option(
        "attention", choices=("attention", "attention+mlp"), help="modules that get an update"
    )


class Method:
    """LoRA on the denoiser; the text encoders stay as they are and are encoded once."""

    learning_rate = 1e-4
    views = 100

    def __init__(self, options: Options) -> None:
        self.options = options

    def live(self) -> set[str]:
        return {"denoiser"}

    def attach(
        self, family: Family, concepts: Sequence[Concept], seed: int, teacher: bool = False
    ) -> None:
        """Insert zero-initialised updates, so that step 0 is the base itself."""
        import torch
        from peft import LoraConfig, inject_adapter_in_model

        from dreamtune.draws import seed_of

        _words.bind(family, concepts)
        rank = self.options.rank
        config = LoraConfig(
            r=rank,
            lora_alpha=self.options.alpha or rank,
            lora_dropout=self.options.dropout,
            target_modules=family.lora_targets[self.options.targets],
        )
        family.denoiser.requires_grad_(False)
        torch.manual_seed(seed_of(seed, "lora"))
        inject_adapter_in_model(config, family.denoiser)
        named = family.denoiser.named_parameters()
        self._trainable = {name: p for name, p in named if p.requires_grad}
        for p in self._trainable.values():
            p.data = p.data.float()

    @contextmanager
    def teacher(self, family: Family) -> Iterator[None]:
        """PEFT's layers step aside."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [m for m in family.denoiser.modules() if isinstance(m, BaseTunerLayer)]
        trained = [p for p in self._trainable.values() if p.requires_grad]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            for p in self._trainable.values():  # PEFT marks all of them
                p.requires_grad_(False)
            for p in trained:
                p.requires_grad_(True)

    def groups(self) -> list[Group]:
        return [Group("denoiser", self._trainable)]

    def export(self, family: Family, concepts: Sequence[Concept], facts: Facts) -> Files:
        """kohya's layout for the user interfaces, diffusers' for `load_lora_weights`."""
        from dreamtune.formats import diffusers, kohya, lora, modelspec

        name = concepts[0].name
        adapter = {family.denoiser_name: lora.collect(family.denoiser_name, family.denoiser)}
        blocks = family.denoiser.config.get("layers_per_block", 2)
        tensors = kohya.dump(adapter, family.lora_layout, blocks)
        body, base = modelspec.body_sha256(tensors), modelspec.BASES[family.spec]
        metadata = {
            **modelspec.modelspec(base, "lora", body, **about(concepts, facts)),
            **modelspec.kohya_keys(base, adapter, body, name=name, **facts.training),
        }
        return {
            f"{name}.safetensors": (tensors, metadata),
            "pytorch_lora_weights.safetensors": diffusers.dump(adapter),
        }

    def load(
        self, family: Family, concepts: Sequence[Concept], files: Weights, weight: float
    ) -> None:
        """Bind identifiers as in training and add weight * delta W to the base's weights."""
        from dreamtune.formats import diffusers, lora

        _words.bind_again(family, concepts)
        adapter = diffusers.parse(*files["pytorch_lora_weights.safetensors"])
        modules = {family.denoiser_name: family.denoiser}
        shapes = {k: v for n, m in modules.items() for k, v in lora.shapes(n, m).items()}
        if misfits := lora.misfits(lora.signature(adapter), shapes):
            raise Usage(
                f"{concepts[0].name} does not fit the base {family.base}",
                why=misfits[0],
                fix="use the base it was trained on",
            )
        for component, updates in adapter.items():
            _merge(modules[component], updates, weight)


def _merge(model: Any, updates: dict[str, LoraWeights], weight: float) -> None:
    """W + weight * delta W, summed in fp32 and cast once, as the user interfaces do."""
    from dreamtune.formats import lora

    for path, update in updates.items():
        target = model.get_submodule(path).weight
        change = lora.delta(update).to(target.device)
        target.data = (target.data.float() + weight * change).to(target.dtype)
