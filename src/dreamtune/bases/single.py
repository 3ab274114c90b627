"""A base as one .safetensors file: Stable Diffusion 1.x, 2.x or XL, as A1111 and ComfyUI have them.

The file is read where it is; nothing is converted on disk and nothing is asked of the hub. What it
lacks, configs and tokenizer, follows from its shapes and from the vocabulary of CLIP.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamtune.bases import folder, hashes, weights
from dreamtune.bases.weights import Stored
from dreamtune.errors import Damaged
from dreamtune.formats import architecture, checkpoint
from dreamtune.formats.checkpoint import Kind

CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"}


@dataclass(frozen=True)
class Single:
    """A base in one file. `name` is what outputs call it."""

    name: str
    path: Path

    def check(self) -> None:
        """Look at everything that could be refused. Damaged, Unsafe or Usage."""
        configs = self._configs
        inputs, latents = configs["unet"]["in_channels"], configs["vae"]["latent_channels"]
        if inputs != latents:
            folder.refuse_inputs(self.name, inputs, latents)

    @property
    def pipeline(self) -> str:
        """Class of the diffusers pipeline that the file is for."""
        return self.kind.pipeline

    @functools.cached_property
    def kind(self) -> Kind:
        return checkpoint.recognise(self.path.name, self._shapes)

    @property
    def settings(self) -> dict[str, Any]:
        """What the pipeline is told beside its parts: a file says nothing."""
        return {}

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Part to class."""
        found = dict(CLASSES)
        for text in self.kind.text:
            second = text.part.endswith("_2")
            found[text.part] = "CLIPTextModelWithProjection" if second else "CLIPTextModel"
            found[text.part.replace("text_encoder", "tokenizer")] = "CLIPTokenizer"
        return found

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part with weights, or of the scheduler."""
        return self._configs[part]

    def tensors(self, part: str) -> dict[str, Stored]:
        """The weights of a part, by diffusers' names; only the header is read."""
        found = {}
        for key, places in checkpoint.places(self.kind, self._shapes).items():
            for place in places:
                if place.part == part:
                    found[place.name] = _fitted(self._stored[key], place)
        return found

    def contents(self) -> dict[str, tuple[Stored, list[checkpoint.Place]]]:
        """Every tensor of the file with its places in parts: none for what is no part's."""
        places = checkpoint.places(self.kind, self._shapes)
        return {key: (tensor, places.get(key, [])) for key, tensor in self._stored.items()}

    def load(self, part: str, kind: Any, dtype: Any, device: Any = "cpu") -> Any:
        """A frozen module of class `kind` with the weights of `part`."""
        place = f"{self.path.name}: {part}"
        return weights.load(place, kind, self.config(part), self.tensors(part), dtype, device)

    def tokenizer(self, part: str, kind: Any) -> Any:
        """CLIP's tokenizer, which every such file goes with; OpenCLIP pads with the first token."""
        from dreamtune.bases import vocabulary

        name = part.replace("tokenizer", "text_encoder")
        (text,) = (text for text in self.kind.text if text.part == name)
        config = self.config(name)
        words, merges = vocabulary.of_size(config["vocab_size"])
        pad = {"pad_token": "!"} if text.open_clip else {}
        length = config["max_position_embeddings"]
        return kind(vocab=words, merges=merges, model_max_length=length, **pad)

    def fingerprint(self, part: str = "") -> str:
        """Hash of the file, or of a part of it, such as "vae"."""
        return hashlib.sha256(f"{hashes.sha256(self.path)} {part}".encode()).hexdigest()

    @functools.cached_property
    def _stored(self) -> dict[str, Stored]:
        return weights.stored(self.path)

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._stored.items()}

    @functools.cached_property
    def _configs(self) -> dict[str, dict[str, Any]]:
        try:
            return architecture.configs(self.kind, self._shapes)
        except Damaged as e:
            raise Damaged(f"{self.path.name}: {e.what}", why=e.why, fix=e.fix) from None


def _fitted(tensor: Stored, place: checkpoint.Place) -> Stored:
    """A tensor of the file as the module wants it."""
    if place.third is not None:
        return tensor.rows(place.third, of=3)
    if place.transposed:
        return tensor.turned()
    if place.linear and len(tensor.shape) == 4:
        return tensor.reshaped(*tensor.shape[:2])
    return tensor
