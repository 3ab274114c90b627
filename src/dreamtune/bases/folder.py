"""A base as a folder in the diffusers layout, and what such a folder may hold.

    model_index.json                      the pipeline's class, and each part's library and class
    unet/config.json, *.safetensors       a part with weights, whole or in shards with an index
    tokenizer/vocab.json, merges.txt …    a part without

A folder is checked before anything of it is used: classes against a list, weights by their headers,
configs for ways to name code, names and links for ways out of the folder. Nothing in it is run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dreamtune.bases import hashes, weights
from dreamtune.bases.weights import Stored
from dreamtune.errors import Damaged, NotFound, Unsafe, Usage
from dreamtune.formats import header

INDEX = "model_index.json"
MODELS = {
    "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel", "AutoencoderKL",
    "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel",
}  # fmt: skip
TOKENIZERS = {"CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast"}
# Parts of released pipelines that neither training nor sampling uses: never fetched, never opened.
UNUSED = {
    "StableDiffusionSafetyChecker", "CLIPImageProcessor", "CLIPFeatureExtractor",
    "CLIPVisionModelWithProjection", "SiglipVisionModel", "SiglipImageProcessor",
}  # fmt: skip
LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}
STEMS = ("model", "diffusion_pytorch_model")
VARIANTS = ("", ".fp16", ".bf16")  # in order of preference: full precision first
MOST_JSON = 64 * 2**20  # bytes; T5's tokenizer.json has 2 MB
MOST_NUMBER = 10_000_000  # in a config; the largest of a released base is T5's vocabulary
MOST_STEPS = 10_000  # values in a list of a scheduler's config
SHARD = re.compile(r"[\w.-]+\.safetensors")


def parts_of(index: dict[str, Any], place: str) -> dict[str, str]:
    """Part to class, of what a model_index.json names and dreamtune may use.

    Unsafe for a class, library or part name that is on no list.
    """
    parts = {}
    for part, value in index.items():
        if part.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        library, kind = map(str, value) if len(value) == 2 else ("", "")
        known = kind in MODELS | TOKENIZERS | UNUSED or kind.endswith("Scheduler")
        if library not in LIBRARIES or not known or not re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", part):
            raise Unsafe(
                f"{place} names {_dotted(value)} for {part!r}",
                why="a base is made of known classes of diffusers and transformers",
            )
        if kind not in UNUSED:
            parts[part] = kind
    return parts


def pipeline_of(index: dict[str, Any], place: str) -> str:
    """The pipeline's class. Damaged when none is named, Unsafe for one that brings its own code."""
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list):
        raise Unsafe(f"{place} names {_dotted(pipeline)}", why="that is code of its own")
    if not isinstance(pipeline, str):
        raise Damaged(f"{place} is damaged", why="it names no pipeline class")
    return pipeline


def weight_files(names: Iterable[str], part: str) -> tuple[str, str]:
    """Of the file names in a part: its weights or its index of shards, and the variant.

    Full precision where it is there. Unsafe when there are only pickles, Damaged when nothing.
    """
    there = set(names)
    for variant in VARIANTS:
        for stem in STEMS:
            for file in (
                f"{stem}{variant}.safetensors",
                f"{stem}.safetensors.index{variant}.json",
            ):
                if file in there:
                    return file, variant
    if pickles := sorted(n for n in there if n.endswith((".bin", ".ckpt", ".pt", ".pth"))):
        raise Unsafe(
            f"{part} has no safetensors weights",
            why=f"there is {pickles[0]}, a pickle, which can run code",
            fix=header.CONVERT,
        )
    raise Damaged(f"{part} has no weights", fix="download or copy it again")


def shards_of(index: dict[str, Any], place: str) -> list[str]:
    """The files that an index of shards names: plain names beside it."""
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise Damaged(f"{place} has no weight_map")
    for shard in places.values():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            why = "a part of a model is a .safetensors file beside its index"
            raise Unsafe(f"{place} names {shard!r:.200}", why=why)
    return sorted(set(places.values()))


@dataclass(frozen=True)
class Folder:
    """A base in the diffusers layout, or one part of one. `name` is what outputs call it."""

    name: str
    path: Path
    alone: str = ""  # the part that the folder itself is, with no others and no index

    def check(self) -> None:
        """Look at everything that could be refused. NotFound, Damaged, Unsafe or Usage."""
        for part, kind in self.parts.items():
            if kind not in TOKENIZERS:
                self.config(part)
            for file in self.files(part):
                self._inside(file)
        self._check_inputs()

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        if self.alone:
            kind = self._json(self.path / "config.json").get("_class_name")
            return {self.alone: ["diffusers", kind]}
        if not (self.path / INDEX).is_file():
            raise NotFound(
                f"{self.path} is no base",
                why=f"it has no {INDEX}",
                fix="give a folder in the diffusers layout, or a .safetensors file",
            )
        return self._json(self.path / INDEX)

    @property
    def pipeline(self) -> str:
        """Class of the diffusers pipeline that the folder is for."""
        return pipeline_of(self.index, str(self.path / INDEX))

    @property
    def settings(self) -> dict[str, Any]:
        """What the pipeline is told beside its parts."""
        return {k: v for k, v in self.index.items() if k[:1] != "_" and not isinstance(v, list)}

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Part to class."""
        return parts_of(self.index, str(self.path / INDEX))

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part with weights, or of the scheduler."""
        model = self._kind(part) in MODELS
        file = self._place(part) / ("config.json" if model else "scheduler_config.json")
        config = self._json(file)
        check_config(config, str(file), len(self.tensors(part)) if model else MOST_STEPS)
        return config

    def tensors(self, part: str) -> dict[str, Stored]:
        """The weights of a part, by name; only headers are read."""
        if part not in self._tensors:
            found: dict[str, Stored] = {}
            for file in self._weights(part):
                found |= weights.stored(self._inside(file))
            self._tensors[part] = found
        return self._tensors[part]

    def load(self, part: str, kind: Any, dtype: Any, device: Any = "cpu") -> Any:
        """A frozen module of class `kind` with the weights of `part`."""
        place = f"{self.name}: {part}"
        return weights.load(place, kind, self.config(part), self.tensors(part), dtype, device)

    def tokenizer(self, part: str, kind: Any) -> Any:
        """The tokenizer of class `kind` in `part`."""
        self._kind(part)
        try:
            return kind.from_pretrained(self._place(part), local_files_only=True)
        except Exception as e:  # the tokenizers library raises nothing more special
            why = (str(e).strip() or repr(e)).splitlines()[0]
            raise Damaged(f"{self._place(part)} cannot be loaded", why=why) from None

    def fingerprint(self, part: str = "") -> str:
        """Hash of what is used of the base, or of one part of it, such as "vae"."""
        parts = [part] if part else [*self.parts]
        files = [file for name in parts if name in self.parts for file in self.files(name)]
        files += [] if part else [self.path / INDEX]
        lines = [f"{f.relative_to(self.path).as_posix()} {hashes.sha256(f)}" for f in sorted(files)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def files(self, part: str) -> list[Path]:
        """What is used of a part."""
        folder, kind = self._place(part), self.parts[part]
        if kind in TOKENIZERS:
            return sorted(p for p in folder.glob("*") if p.suffix in (".json", ".txt", ".model"))
        if kind in MODELS:
            return [folder / "config.json", *self._weights(part)]
        return [folder / "scheduler_config.json"]

    @functools.cached_property
    def _tensors(self) -> dict[str, dict[str, Stored]]:
        return {}

    def _weights(self, part: str) -> list[Path]:
        folder = self._place(part)
        names = [p.name for p in folder.glob("*")] if folder.is_dir() else []
        file, _ = weight_files(names, str(folder))
        if file.endswith(".safetensors"):
            return [folder / file]
        shards = shards_of(self._json(folder / file), str(folder / file))
        if gone := sorted(set(shards) - set(names)):
            why = f"{folder / file} names it"
            raise Damaged(f"there is no {gone[0]}", why=why, fix="download or copy it again")
        return [folder / shard for shard in shards]

    def _place(self, part: str) -> Path:
        return self.path if part == self.alone else self.path / part

    def _kind(self, part: str) -> str:
        if part not in self.parts:
            raise Damaged(f"{self.path} has no {part}", why=f"its {INDEX} names none")
        return self.parts[part]

    def _inside(self, file: Path) -> Path:
        """`file`, if it is a regular file, and no link leads out of the folder but into the hub's
        cache, which is made of links.
        """
        try:
            real, mode = file.resolve(strict=True), file.stat().st_mode
        except (OSError, RuntimeError):
            fix = "download or copy it again"
            raise Damaged(f"{self.path} is not complete", why=f"no {file}", fix=fix) from None
        if not (real.is_relative_to(self.path.resolve()) or real.is_relative_to(_hub_cache())):
            raise Unsafe(f"{file} is a link to {real}", why="that is outside of the base's folder")
        if not stat.S_ISREG(mode):  # opening a FIFO would wait for ever
            raise Unsafe(f"{file} is not a regular file")
        return file

    def _json(self, path: Path) -> dict[str, Any]:
        return read_json(self._inside(path))

    def _check_inputs(self) -> None:
        """A UNet reads the autoencoder's latents and nothing else."""
        if not {"unet", "vae"} <= self.parts.keys():
            return
        unet, vae = self.tensors("unet"), self.tensors("vae")
        first, last = unet.get("conv_in.weight"), vae.get("decoder.conv_in.weight")
        if first and last and first.shape[1:2] != last.shape[1:2]:
            refuse_inputs(self.name, first.shape[1], last.shape[1])


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).resolve()


def refuse_inputs(name: str, inputs: int, latents: int) -> NoReturn:
    """Usage for a UNet that reads more than latents."""
    what = {2 * latents + 1: "an inpainting model", 2 * latents: "a model that edits pictures"}
    raise Usage(
        f"{name} is {what.get(inputs, 'no text-to-image model')}",
        why=f"its UNet reads {inputs} channels, the latents have {latents}",
        fix="use the text-to-image base that it was made from",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a base; Damaged when it is none."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise Damaged(f"{path} is too large", why=f"at most {MOST_JSON:,} bytes are read")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise Damaged(f"{path} cannot be read", why=str(e)) from None
    if not isinstance(found, dict):
        raise Damaged(f"{path} is no JSON object")
    return found


def check_config(config: dict[str, Any], place: str, tensors: int) -> None:
    """Refuse configs that name code, are quantised, or ask for more than their weights can fill."""
    for keys, value in _walk(config):
        key = keys[-1]
        if key in ("auto_map", "custom_pipelines") or "attn_implementation" in key:
            raise Unsafe(f"{place} asks for foreign code", why=f"it has {key}")
        if key == "quantization_config":
            raise Usage(f"{place} is of a quantised model", fix="use the original weights")
        # -Infinity is the usual value of that one.
        if isinstance(value, float) and not math.isfinite(value) and key != "lambda_min_clipped":
            raise Damaged(f"{place} is damaged", why=f"{key} is {value}")
        most = tensors if any("layers" in k for k in keys) else MOST_NUMBER
        length = len(value) if isinstance(value, list | dict) else 0
        if (isinstance(value, int) and abs(value) > most) or length > tensors:
            raise Damaged(f"{place} is damaged", why=f"{key} is {str(value)[:40]}")


def _walk(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value below, with the keys that lead there."""
    inner = value.items() if isinstance(value, dict) else ((k, v) for k in keys[-1:] for v in value)
    for key, item in inner:
        path = (*keys, str(key))
        yield path, item
        if isinstance(item, dict | list):
            yield from _walk(item, path)


def _dotted(value: Any) -> str:
    return ".".join(str(v) for v in value)[:100] if isinstance(value, list) else str(value)[:100]
