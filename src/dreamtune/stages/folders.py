"""A model as a folder in the diffusers layout."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from dreamtune import fsops
from dreamtune.bases.folder import INDEX, MODELS, TOKENIZERS, UNUSED, Folder
from dreamtune.stages.models import Model, Tuned, Written, counted, named, pending


def write(model: Model, out: Path, precision: str) -> Written:
    """A folder that is a base. Nothing changes in `out` before all of it is made beside it.

    What else is in `out` stays, and a base that was there is none while its parts are replaced.
    """
    home = out.resolve()
    made = home.with_name(f".{home.name}.tmp-{os.getpid()}")
    try:
        counts = _fill(model, fsops.make_folder(made), precision)
        fsops.remove(fsops.make_folder(home) / INDEX)
        for part in model.parts:
            fsops.remove_tree(home / part)
            fsops.rename(made / part, home / part)
        fsops.rename(made / INDEX, home / INDEX)
    finally:
        fsops.discard(made)
    return Written([out], counts)


def _fill(model: Model, folder: Path, precision: str) -> Counter[str]:
    """Weights, configs, tokenizers and the index; how many tensors are changed and kept."""
    counts: Counter[str] = Counter()
    index: dict[str, Any] = _index(model)
    for part, kind in model.parts.items():
        home = fsops.make_folder(folder / part)
        if kind in MODELS:
            tensors = named(model, part)
            counts += counted(tensors.values())
            fsops.write_safetensors(
                home / _weights_name(index[part][0]),
                {name: pending(f"{part}.{name}", t, precision) for name, t in tensors.items()},
                {"format": "pt"},
            )
            fsops.write_json(home / "config.json", _config(model, part))
        elif kind in TOKENIZERS:
            _write_tokenizer(model, part, home)
        else:
            config = {"_class_name": kind, **model.config(part)}
            fsops.write_json(home / "scheduler_config.json", config)
    fsops.write_json(folder / INDEX, index)
    return counts


def _index(model: Model) -> dict[str, Any]:
    """model_index.json: the class of each part; parts that are never used are none."""
    own = _folder(model)
    if own:
        return {k: [None, None] if _is_unused(v) else v for k, v in own.index.items()}
    import diffusers

    index: dict[str, Any] = {"_class_name": model.pipeline}
    index["_diffusers_version"] = diffusers.__version__
    for part, kind in model.parts.items():
        text = part.startswith(("text_encoder", "tokenizer"))
        index[part] = ["transformers" if text else "diffusers", kind]
    return index | {"safety_checker": [None, None], "feature_extractor": [None, None]}


def _is_unused(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[1] in UNUSED


def _folder(model: Model) -> Folder | None:
    base = model.base if isinstance(model, Tuned) else model
    return base if isinstance(base, Folder) else None


def _weights_name(library: str) -> str:
    return (
        "model.safetensors" if library == "transformers" else "diffusion_pytorch_model.safetensors"
    )


def _config(model: Model, part: str) -> dict[str, Any]:
    """config.json as the library writes it; a folder's own as it is."""
    config = model.config(part)
    if _folder(model):
        return config
    kind = _class(model, part)
    if hasattr(kind, "config_class"):  # transformers
        full = kind.config_class.from_dict(dict(config)).to_diff_dict()
        return {"architectures": [kind.__name__], **full}
    return {"_class_name": kind.__name__, **config}


def _class(model: Model, part: str) -> Any:
    from dreamtune import families

    base = model.base if isinstance(model, Tuned) else model
    return families.of(base).parts[part]  # type: ignore[arg-type]


def _write_tokenizer(model: Model, part: str, folder: Path) -> None:
    """A tokenizer's files; a library writes them where there is no folder to copy from."""
    own = _folder(model)
    if own:
        for file in own.files(part):
            fsops.write_bytes(folder / file.name, file.read_bytes())
        return
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        model.tokenizer(part, CLIPTokenizer).save_pretrained(scratch)
        fsops.adopt(Path(scratch), folder)
