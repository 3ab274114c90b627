"""Processes that train as one, each on its share of the batch, by averaging what they name.

Started by `torchrun`, one on each core; a process started alone is a team of one.
"""

import os
from datetime import timedelta

import torch
from torch import Tensor, distributed


class Team:
    def __init__(self) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.size > 1:
            # A pause of any length is no fault.
            distributed.init_process_group("gloo", timeout=timedelta(days=7))

    def average(self, tensors: list[Tensor]) -> None:
        """In place; of tensors of one dtype on a CPU. The same to the bit in every process."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
