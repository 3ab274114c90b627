"""A base in memory, dressed in adapters for one prompt and undressed for the next."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dreamtune.stages.adapters import Adapter

if TYPE_CHECKING:
    from dreamtune.bases import Found
    from dreamtune.families import Family
    from dreamtune.sampling import Painter


class Studio:
    """Loads a base once, and changes its adapters when others are asked for.

    several: adapters will change, so what they change is kept to be put back
    """

    def __init__(self, base: Found, device: str, precision: str, several: bool) -> None:
        from dreamtune import devices

        device = devices.choose(device)
        self.family = devices.load(base, device, devices.choose_precision(precision, device))
        self._plain = Plain(self.family) if several else None
        self._worn: Sequence[Adapter] | None = None
        self._painter: Painter | None = None

    def painter(self, adapters: Sequence[Adapter]) -> Painter:
        """The base with just these adapters in it."""
        from dreamtune.sampling import Painter

        if self._painter is None or adapters != self._worn:
            if self._worn:
                assert self._plain, "adapters change, and what was before is not kept"
                self._plain.put_back()
            for adapter in adapters:
                adapter.put_in(self.family)
            self._worn, self._painter = adapters, Painter(self.family)
        return self._painter


class Plain:
    """A base as it is without adapters.

    No weight is copied: a method's `load` gives modules new tensors, and the old ones live on here.
    """

    def __init__(self, family: Family) -> None:
        modules = [family.denoiser, *(stack.encoder for stack in family.text)]
        self.parameters = [
            (owner, name, parameter, parameter.data)
            for module in modules
            for owner in module.modules()
            for name, parameter in owner.named_parameters(recurse=False)
        ]
        self.stacks: list[tuple[Any, ...]] = [
            (
                stack,
                copy.deepcopy(stack.tokenizer),
                stack.encoder.get_input_embeddings(),
                dict(stack.words),
                set(stack.added),
            )
            for stack in family.text
        ]

    def put_back(self) -> None:
        """Make the base plain again, bit for bit."""
        for stack, tokenizer, embeddings, words, added in self.stacks:
            stack.tokenizer = copy.deepcopy(tokenizer)
            stack.encoder.set_input_embeddings(embeddings)
            stack.words, stack.added = dict(words), set(added)
        for owner, name, parameter, data in self.parameters:
            owner.register_parameter(name, parameter)
            parameter.data = data
