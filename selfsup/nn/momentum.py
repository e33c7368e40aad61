"""The momentum encoder: a slowly following copy of a network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """An exponential moving average of a network's parameters, for keys and targets.

    The copy stays in training mode, so its BatchNorm layers use the batch and keep their own running statistics:
    only parameters are averaged. It has no gradients.

    Attributes:
        momentum: That of the last update; None before the first.
    """

    def __init__(self, online: nn.Module) -> None:
        super().__init__()
        self.momentum: float | None = None
        self.module = copy.deepcopy(online).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *args: Any) -> Tensor:
        """Apply the averaged network without recording gradients."""
        out: Tensor = self.module(*args)
        return out

    @torch.no_grad()
    def update(self, online: nn.Module, momentum: float) -> None:
        """Move every parameter: ``k <- momentum * k + (1 - momentum) * q``. Call it once an optimiser step."""
        self.momentum = momentum
        torch._foreach_lerp_(list(self.module.parameters()), [q.detach() for q in online.parameters()], 1 - momentum)
