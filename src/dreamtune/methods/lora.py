"""Low-rank adaptation (Hu et al., arXiv:2106.09685) of the denoiser, on PEFT's layers.

With `dora` the length of each row is trained by itself (Liu et al., arXiv:2402.09353); with
`train_text` CLIP's text encoders get updates too; with `train_token` a new word is learned beside
it, which is pivotal tuning (arXiv:2106.05744, for diffusion in cloneofsimo/lora).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamtune import console
from dreamtune.methods import (
    Concept,
    Facts,
    Files,
    Group,
    Start,
    Weights,
    _options,
    _peft,
    _targets,
    _thaw,
    _tokens,
    _words,
    about,
)
from dreamtune.settings import option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamtune.families import Family
    from dreamtune.formats.lora import Adapter

    Words = Mapping[str, Mapping[str, Tensor]]

USUAL_RANK = 16
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class Options:
    """W + alpha / rank * up @ down, for each targeted module."""

    rank: int | None = option(
        None, low=1, high=1024, help="Rank of the update; 4 to 128 are usual. [by the photos]"
    )
    alpha: float | None = option(
        None, above=0, alias=("--network-alpha",), help="The scale is alpha / rank. [the rank]"
    )
    rslora: bool = option(False, rare=True, help="The scale is alpha / sqrt(rank) instead.")
    dora: bool = option(
        False,
        rare=True,
        alias=("--use-dora",),
        help="DoRA: the length of each weight's rows is trained by itself.",
    )
    dropout: float = option(0.0, low=0, below=1, rare=True, help="Dropout before the update.")
    targets: tuple[str, ...] = option(
        ("attention",),
        help="Modules that get one: attention, attention+mlp, all, or ends of names: 'attn2.to_*'.",
    )
    blocks: tuple[str, ...] = option(
        (), rare=True, help="Only in these blocks: mid, up, up.1, OUT05. [all blocks]"
    )
    train_text: bool = _options.train_text()
    text_learning_rate: float | None = _options.text_learning_rate()
    unfreeze: str | None = _options.unfreeze()
    unfreeze_denoiser: str | None = _options.unfreeze_denoiser()
    train_token: bool = option(
        False, alias=("--train-text-encoder-ti",), help="Learn a new word too: pivotal tuning."
    )
    token_learning_rate: float = option(
        _tokens.LEARNING_RATE, above=0, high=10, rare=True, help="Peak rate of the new word."
    )
    init_word: str | None = _options.init_word()
    vectors: int = _options.vectors()
    keep_norm: bool = _options.keep_norm()

    def __post_init__(self) -> None:
        _thaw.check(self.unfreeze, self.unfreeze_denoiser, self.train_text)


class Method:
    """LoRA on the denoiser, and as asked on the text encoders and beside a new word."""

    learning_rate = 1e-4
    views = 100
    goes_on = True
    shape: tuple[str, ...] = ("rank", "alpha", "rslora", "dora", "targets", "blocks", "train_text")
    shape += ("train_token", "vectors")

    @staticmethod
    def shape_of(adapter: Adapter, words: Words) -> dict[str, Any]:
        """The options that a file of any program decides; its modules are what they are."""
        updates = [update for modules in adapter.values() for update in modules.values()]
        largest = max(updates, key=lambda update: update.rank)
        found: dict[str, Any] = {"rank": largest.rank, "alpha": largest.alpha, "rslora": False}
        found["dora"] = any(update.magnitude is not None for update in updates)
        found["train_text"] = any(part.startswith("text") for part in adapter)
        if words:
            found["vectors"] = len(next(iter(next(iter(words.values())).values())))
        return {**found, "train_token": bool(words)}

    def __init__(self, options: Options) -> None:
        self.options = options
        self._words: _tokens.Words | None = None

    def live(self) -> set[str]:
        with_text = self.options.train_text or self.options.train_token
        return {"denoiser", "text"} if with_text else {"denoiser"}

    def attach(
        self,
        family: Family,
        concepts: Sequence[Concept],
        seed: int,
        teacher: bool = False,
        start: Start | None = None,
    ) -> None:
        """Insert zero-initialised updates, so that step 0 is the base itself; or those of `start`,
        on the modules that it has.
        """
        import torch

        from dreamtune.draws import seed_of

        options, denoiser = self.options, family.denoiser
        denoiser.requires_grad_(False)
        torch.manual_seed(seed_of(seed, "lora"))
        encoders = _words.clip_stacks(family) if options.train_text else []
        self._models = {family.denoiser_name: denoiser, **{s.name: s.encoder for s in encoders}}
        if start:
            parts = _peft.begin(start, self._models, family.base, options.dropout)
        else:
            presets = family.lora_targets
            paths = _targets.choose(denoiser, presets, options.targets, options.blocks)
            targets = {family.denoiser_name: paths}
            parts = {
                name: self._inject(model, targets.get(name, TEXT_TARGETS))
                for name, model in self._models.items()
            }
        self._denoiser = parts.pop(family.denoiser_name)
        self._text = parts
        if options.train_token:
            rows = _tokens.begin(family, concepts, options.init_word, options.vectors, start)
            self._words = _tokens.Words(family, concepts, rows, options.keep_norm)
        else:
            _words.bind(family, concepts)
        count = sum("lora_A" in name for name in self._denoiser)
        console.say(f"LoRA on {count} modules of the denoiser, {self._scale()}")

    def _inject(self, model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Parameter]:
        """PEFT's layers in a model; their parameters, in fp32."""
        options = self.options
        return _peft.inject(
            model,
            targets,
            r=self._rank,
            lora_alpha=options.alpha or self._rank,
            lora_dropout=options.dropout,
            use_rslora=options.rslora,
            use_dora=options.dora,
        )

    @property
    def _rank(self) -> int:
        return self.options.rank or USUAL_RANK

    def _scale(self) -> str:
        """How strong an update is, which is what alpha is about."""
        rank, root = self._rank, self.options.rslora
        alpha = self.options.alpha or rank
        scale = alpha / (math.sqrt(rank) if root else rank)
        below = "sqrt(rank)" if root else "rank"
        return f"rank {rank}, alpha {alpha:g}: scale {scale:.4g} (alpha / {below})"

    @contextmanager
    def teacher(self, family: Family) -> Iterator[None]:
        """PEFT's layers step aside."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        models = self._models.values()
        layers = [m for model in models for m in model.modules() if isinstance(m, BaseTunerLayer)]
        parameters = [p for part in (self._denoiser, *self._text.values()) for p in part.values()]
        trained = [p for p in parameters if p.requires_grad]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            for p in parameters:  # PEFT marks all of them
                p.requires_grad_(False)
            for p in trained:
                p.requires_grad_(True)

    def groups(self) -> list[Group]:
        options = self.options
        found = _thaw.split(self._denoiser, options.unfreeze_denoiser)
        groups = [Group("denoiser", part, start=start) for start, part in found]
        for name, parameters in self._text.items():
            named = {f"{name}.{path}": p for path, p in parameters.items()}
            for start, part in _thaw.split(named, options.unfreeze):
                rate = options.text_learning_rate
                groups.append(Group("text", part, learning_rate=rate, start=start))
        return groups + ([self._words.group(options.token_learning_rate)] if self._words else [])

    def export(self, family: Family, concepts: Sequence[Concept], facts: Facts) -> Files:
        """kohya's layout for the user interfaces, diffusers' for `load_lora_weights`."""
        from dreamtune.formats import diffusers, embeddings, kohya, lora, modelspec, proof
        from dreamtune.formats.ldm import Blocks

        name, blocks = concepts[0].name, Blocks.of(family.denoiser.config)
        adapter = {part: lora.collect(part, model) for part, model in self._models.items()}
        layers = {part: lora.layers(part, model) for part, model in self._models.items()}
        for_uis = lora.for_base_norm(adapter, lambda part, m: layers[part][m].weight.cpu(), True)
        tensors, marks = kohya.dump(for_uis, family.lora_layout, blocks)
        files: Files = {"pytorch_lora_weights.safetensors": diffusers.dump(adapter)}
        read = {name: proof.read_back(tensors, marks, blocks)}
        read |= {file: proof.read_back(*saved) for file, saved in files.items()}
        proof.check(
            read, itertools.chain(*itertools.starmap(lora.live_deltas, self._models.items()))
        )
        if self._words:
            files |= self._words.learned_embeds(concepts)
            for concept, rows in zip(concepts, self._words.rows(), strict=True):
                tensors |= embeddings.dump_bundled(_bundled(_tokens.token(concept)), rows)
        body, base = modelspec.body_sha256(tensors), modelspec.BASES[family.spec]
        metadata = {
            **marks,
            **modelspec.modelspec(base, "lora", body, **about(concepts, facts)),
            **modelspec.kohya_keys(base, adapter, body, name=name, **facts.training),
        }
        return {f"{name}.safetensors": (tensors, metadata), **files}

    def load(
        self, family: Family, concepts: Sequence[Concept], files: Weights, weight: float
    ) -> None:
        """Add weight * delta W to the base's weights; words are what they were in training."""
        from dreamtune.formats import adapters, lora

        if self.options.train_token:
            self._load_words(family, concepts, files)
        else:
            _words.bind_again(family, concepts)
        adapter = adapters.parse(*files["pytorch_lora_weights.safetensors"]).adapter
        models = {family.denoiser_name: family.denoiser}
        models |= {stack.name: stack.encoder for stack in family.text}
        lora.put_in(models, adapter, weight, f"{concepts[0].name} and the base {family.base}")

    def _load_words(self, family: Family, concepts: Sequence[Concept], files: Weights) -> None:
        """The words as they were learned: half a vector is another word, not half of it."""
        from dreamtune.formats import adapters
        from dreamtune.formats.ldm import Blocks

        file = files[f"{concepts[0].name}.safetensors"]
        stored = adapters.parse(*file, Blocks.of(family.denoiser.config)).words
        words = [_bundled(concept.bindings[0]["word"].split()[0]) for concept in concepts]
        self._words = _tokens.Words(family, concepts, [stored[word] for word in words])


def _bundled(token: str) -> str:
    """What other tools call a word that comes with a LoRA: brackets mean something to A1111."""
    return token.strip("<>")
