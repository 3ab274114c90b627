"""Adapters that work without having been trained: real files, random changes, in a second."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from dreamtune import families, fsops, plugins
from dreamtune.artifacts import Artifact
from dreamtune.methods import Concept, Facts
from dreamtune.store import Store


def make(
    store: Store,
    name: str,
    method: str = "lora",
    identifier: str = "[V01]",
    class_word: str = "dog",
    base: str = "tiny:sd",
    amount: float = 0.5,
    **options: Any,
) -> Artifact:
    """An adapter artifact; `amount` is how far its parameters lie from where training begins."""
    family = families.load(base, torch.float32)
    module = plugins.load("dreamtune.methods", method)
    chosen = module.Options(**options)
    own = module.Method(chosen)
    bare = Concept(identifier, class_word, name)
    own.attach(family, [bare], seed=0)
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    for group in own.groups():
        for parameter in group.parameters.values():
            spread = parameter.detach().std(unbiased=False).clamp(min=0.1)
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter.data + amount * spread * noise
    concept = dataclasses.replace(
        bare, bindings=[stack.record(identifier) for stack in family.text]
    )
    facts = {
        "method": method,
        "options": dataclasses.asdict(chosen),
        "family": family.name,
        "base": base,
        "base_hash": f"{base}/",
        "concepts": [{k: getattr(concept, k) for k in ("identifier", "class_word", "bindings")}],
        "steps": 9,
    }
    key = store.key("adapter", 1, {"name": name, "amount": amount, **facts}, [])
    with store.draft("adapter", name, key, facts, []) as draft:
        files = own.export(family, [concept], Facts((64, 64), {"max_train_steps": 9}))
        for path, content in files.items():
            fsops.make_folder((draft.path / path).parent)
            if isinstance(content, tuple):
                fsops.write_safetensors(draft.path / path, *content)
            else:
                fsops.write_json(draft.path / path, content)
        fsops.write_json(draft.path / "adapter.json", facts)
        return draft.commit({})
