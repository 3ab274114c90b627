"""inspect: what a file is, from its header; with `deep` also what its values are."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Damaged, NonFinite, UserError
from dreamtune.formats import adapters, checkpoint, header, target
from dreamtune.formats.adapters import Outline
from dreamtune.formats.entries import Entry
from dreamtune.formats.header import Header
from dreamtune.fsops import hash_file

if TYPE_CHECKING:
    from torch import Tensor

KINDS = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "full": "differences of weights"}


@dataclass
class Report:
    """What one file says, in the order in which people want to know it."""

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problem: UserError | None = None


def run(path: Path, deep: bool = False) -> Report:
    """Describe a file or PEFT folder. What is wrong with it is in the report, not raised."""
    report = Report(path)
    try:
        parts = _outline(path)
        if isinstance(parts, Header):
            _describe_model(report, parts)
        else:
            _describe_adapter(report, parts)
        files = [path] if isinstance(parts, Header) else [part.path for part in parts]
        headers = [parts] if isinstance(parts, Header) else [part.header for part in parts]
        _describe_metadata(report, headers[0].metadata)
        _describe_files(report, files, headers)
        if deep:
            for file, one in zip(files, headers, strict=True):
                _look_deep(report, file, one)
    except UserError as e:
        report.problem = e
    return report


def _outline(path: Path) -> list[Outline] | Header:
    """An adapter's outline, or the header of another kind of file."""
    if path.is_dir():
        return adapters.outline(path)
    found = header.read_header(path)
    shapes = _shapes(found)
    try:
        adapters.layout_of(shapes)
    except Damaged:
        if checkpoint.describe(path.name, shapes):
            return found
        raise
    return adapters.outline(path)


def _shapes(found: Header) -> dict[str, tuple[int, ...]]:
    return {key: tensor.shape for key, tensor in found.tensors.items()}


# ---- the kinds of files


def _describe_model(report: Report, found: Header) -> None:
    report.facts["what"] = checkpoint.describe(report.path.name, _shapes(found))


def _describe_adapter(report: Report, parts: list[Outline]) -> None:
    entries = [(part, entry) for part in parts for entry in part.entries]
    signature = {name: shape for part in parts for name, shape in part.signature.items()}
    words = _words(parts)
    widths = {width for vectors in words.values() for _, width in vectors.values()}
    base = target.of_adapter(signature) if signature else target.of_words(widths)
    report.facts |= {
        "what": _what([entry for _, entry in entries]),
        "layout": parts[0].layout,
        "for": target.NAMES[base] if base else "a base of unknown size",
        "base": base,
    }
    if signature:
        report.facts |= _strength(entries)
        report.facts["modules"] = dict(Counter(name.partition(".")[0] for name in signature))
        kinds = ("linear" if len(shape) == 2 else "convolution" for shape in signature.values())
        report.facts["layers"] = dict(Counter(kinds))
    if words:
        report.facts["words"] = words


def _what(entries: list[Entry]) -> str:
    kinds = Counter(entry.kind for entry in entries)
    if not kinds:
        return "embedding"
    names = ["DoRA" if any(e.is_dora for e in entries) and k == "lora" else KINDS[k] for k in kinds]
    return " and ".join(names)


def _strength(entries: list[tuple[Outline, Entry]]) -> dict[str, Any]:
    """Ranks, alphas and their quotients: one number each, or how many modules have which."""
    ranks: Counter[int] = Counter()
    alphas: Counter[float] = Counter()
    scales: Counter[float] = Counter()
    shapes = {part.path: part.shapes for part, _ in entries}
    for part, entry in entries:
        rank = entry.rank(shapes[part.path])
        if rank:
            key = entry.parts.get("alpha")
            alpha = header.scalar(part.path, part.header, key) if key else entry.alpha
            alpha = float(rank) if alpha is None else alpha
            ranks[rank] += 1
            alphas[alpha] += 1
            scales[round(alpha / rank, 6)] += 1
    return {"rank": _one(ranks), "alpha": _one(alphas), "scale": _one(scales)}


def _one(counts: Counter[Any]) -> Any:
    """The only value, or {value: how often}; None when there is none."""
    if len(counts) < 2:
        return next(iter(counts), None)
    return {str(value): counts[value] for value in sorted(counts)}


def _words(parts: list[Outline]) -> dict[str, dict[str, list[int]]]:
    """Each word's vectors, [number, width] by text encoder."""
    words: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for part in parts:
        for key, (word, component) in part.words.items():
            shape = part.header.tensors[key].shape
            words[word or part.path.stem][component] = [math.prod(shape[:-1]), shape[-1]]
    return dict(words)


# ---- what it says of itself


SAID = {
    "title": ("modelspec.title", "ss_output_name"),
    "trigger": ("modelspec.trigger_phrase",),
    "trained on": ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture"),
    "steps": ("ss_steps", "ss_max_train_steps"),
    "learning rate": ("ss_learning_rate",),
    "date": ("modelspec.date",),
    "license": ("modelspec.license",),
    "author": ("modelspec.author",),
}
ARCHITECTURES = {
    "stable-diffusion-v1": "sd1",
    "stable-diffusion-v2": "sd2",
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-v3": "sd3",
    "stable-diffusion-3": "sd3",
    "flux-1": "flux",
    "dreamtune-mini": "mini",
}


def _describe_metadata(report: Report, metadata: Mapping[str, str]) -> None:
    said = {
        k: next((metadata[m] for m in names if metadata.get(m)), "") for k, names in SAID.items()
    }
    report.facts |= {key: value for key, value in said.items() if value}
    report.facts["metadata entries"] = len(metadata)
    claim = metadata.get("modelspec.architecture", "")
    claimed = next((base for start, base in ARCHITECTURES.items() if claim.startswith(start)), None)
    base = report.facts.get("base")
    if base and claimed and claimed != base:
        names = target.NAMES[claimed], target.NAMES[base]
        report.warnings.append(f"its metadata says {names[0]}, its shapes say {names[1]}")
    dimension, rank = metadata.get("ss_network_dim", ""), report.facts.get("rank")
    if isinstance(rank, int) and dimension.isdecimal() and int(dimension) != rank:
        report.warnings.append(f"its metadata says rank {dimension}, its tensors have {rank}")
    alpha, scale = metadata.get("ss_network_alpha", ""), report.facts.get("scale")
    with contextlib.suppress(ValueError, ZeroDivisionError):
        told = f"its metadata says alpha {alpha} of rank {dimension}"
        if isinstance(scale, float) and abs(float(alpha) / int(dimension) / scale - 1) > 0.01:
            report.warnings.append(f"{told}, its tensors have a scale of {scale:g}")


def _describe_files(report: Report, files: list[Path], headers: list[Header]) -> None:
    dtypes = Counter(t.dtype for one in headers for t in one.tensors.values() if len(t.shape) > 0)
    report.facts["dtype"] = _one(dtypes)
    report.facts["tensors"] = sum(len(one.tensors) for one in headers)
    report.facts["bytes"] = sum(file.stat().st_size for file in files)
    if recorded := _recorded(headers[0].metadata):
        report.facts["hash"] = {"recorded": recorded, "short": recorded[:12]}


def _recorded(metadata: Mapping[str, str]) -> str:
    """The hash of the tensors that the file says it has; A1111 shows its first 12 characters."""
    found = metadata.get("sshs_model_hash") or metadata.get("modelspec.hash_sha256", "")
    return found.removeprefix("0x").lower()


# ---- its values


def _look_deep(report: Report, path: Path, found: Header) -> None:
    """Hashes of all bytes, values that are no numbers, tensors of zeros, and norms."""
    body = header.body_sha256(path)
    report.facts["hash"] = {"sha256": hash_file(path), "tensors": body, "short": body[:12]}
    recorded = _recorded(found.metadata)
    bad, zero = [], []
    squares: dict[str, float] = defaultdict(float)
    for name, tensor in _tensors(path):
        if tensor.is_floating_point():
            norm = float(tensor.double().norm())
            bad += [] if math.isfinite(norm) else [name]
            zero += [] if norm else [name]
            if math.isfinite(norm):
                squares[name.partition(".")[0].partition("_blocks")[0]] += norm * norm
    report.facts["zero tensors"] = len(zero)
    report.facts["norm"] = {name: math.sqrt(total) for name, total in sorted(squares.items())}
    if bad:
        raise NonFinite(
            f"{path.name} has values that are no finite numbers",
            why=f"in {len(bad)} tensors, such as {bad[0]}",
            fix="use an earlier save, or train with a lower learning rate",
        )
    if recorded and recorded != body:
        raise Damaged(
            f"{path.name} is not as it was saved",
            why=f"its tensors hash to {body[:12]}, its metadata says {recorded[:12]}",
        )


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            yield name, file.get_tensor(name)
