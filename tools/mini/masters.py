"""Mixed precision by two copies: weights in fp32 that learn, and a copy in bf16 that works.

Autocast would cast every weight in every step, and its layers would come and go in two dtypes.
"""

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from tools.mini.kernels import speed_up
from tools.mini.muon import Muon
from tools.mini.team import Team

Network = TypeVar("Network", bound=nn.Module)


class Masters(Generic[Network]):
    """network: fp32, channels last. working: what forward and backward run on."""

    def __init__(self, network: Network, learning_rate: float, device: str, team: Team) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.working = copy.deepcopy(self.network).bfloat16()
        if device == "cpu":
            speed_up(self.working)
        self.optimizer, self.team = Muon(self.network, learning_rate), team

    def update(self, learning_rate: float) -> None:
        """By the gradients of the working copy, averaged over the team and clipped to 1."""
        learning = [
            (master, copied)
            for master, copied in zip(
                self.network.parameters(), self.working.parameters(), strict=True
            )
            if master.requires_grad
        ]
        for master, copied in learning:
            assert copied.grad is not None
            master.grad, copied.grad = copied.grad.float(), None
        gradients = [master.grad for master, _ in learning if master.grad is not None]
        self.team.average(gradients)
        nn.utils.clip_grad_norm_([master for master, _ in learning], 1.0)
        self.optimizer.step(learning_rate)
        self.share()

    @torch.no_grad()
    def share(self) -> None:
        """The weights as they are now, to the copy that works."""
        torch._foreach_copy_(list(self.working.parameters()), list(self.network.parameters()))

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.share()
