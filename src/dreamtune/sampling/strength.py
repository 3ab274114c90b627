"""Style strength: how strongly a learned concept shows, [V01]:0.6.

    cross-attention = (1 - s) A(q, prompt without the concept) + s A(q, prompt with it)

Outputs are mixed, not words, so the two prompts need not be equally long and each keeps its own
word order. Several concepts multiply out (formats.prompts.variants). Pooled text is mixed by the
same shares; the scale of a LoRA is multiplied by s where adapters are put in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dreamtune.errors import Usage

if TYPE_CHECKING:
    from torch import Tensor

    from dreamtune.families import Family


class Mixed:
    """An attention processor over several contexts that lie behind one another."""

    def __init__(self, inner: Any, shares: Sequence[float]) -> None:
        self.inner, self.shares = inner, shares

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **options: Any
    ) -> Tensor:
        """hidden_states (B, N, C); encoder_hidden_states (B, shares x L, D)."""
        contexts = encoder_hidden_states.chunk(len(self.shares), dim=1)
        outputs = [self.inner(attn, hidden_states, context, **options) for context in contexts]
        return sum(share * output for share, output in zip(self.shares, outputs, strict=True))


@contextlib.contextmanager
def mixed(family: Family, shares: Sequence[float]) -> Iterator[None]:
    """Within, the denoiser's cross-attention reads as many contexts as there are shares.

    Usage when the base has no cross-attention: SD 3 and FLUX read words and picture jointly.
    """
    if len(shares) == 1:
        yield
        return
    before = getattr(family.denoiser, "attn_processors", {})
    cross = {name for name in before if name.endswith("attn2.processor")}
    if not cross:
        raise Usage(
            f"{family.base} cannot show a concept in part",
            why="it has no cross-attention that could be mixed",
            fix="--with NAME@0.6 weakens a LoRA",
        )
    family.denoiser.set_attn_processor(
        {name: Mixed(p, shares) if name in cross else p for name, p in before.items()}
    )
    try:
        yield
    finally:
        family.denoiser.set_attn_processor(dict(before))
