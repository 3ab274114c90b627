"""Random numbers by name: every draw is a function of (seed, purpose, ordinal).

Nothing has to be saved to resume a run and nothing depends on the number of workers, because no
draw depends on the one before it.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(seed: int, *purpose: str | int) -> int:
    """A seed in [0, 2^63) for one purpose, such as `seed_of(0, "noise", 17)`."""
    text = "/".join(str(part) for part in (seed, *purpose))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose: the same numbers whatever device they are used on."""
    return torch.Generator().manual_seed(seed_of(seed, *purpose))
