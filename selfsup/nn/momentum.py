"""The momentum encoder: a slowly following copy of a network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from selfsup.nn.backbone import Backbone
from selfsup.nn.tokens import Tokens


class MomentumEncoder(nn.Module):
    """An exponential moving average of a network's parameters, for keys and targets.

    The copy stays in training mode, so its BatchNorm layers use the batch and keep their own running statistics:
    only parameters are averaged. It has no gradients.

    Args:
        online: The network that it begins as.
        evaluates: Keep the copy in evaluation mode instead, without dropout and stochastic depth, as the teachers of
            tokens are.

    Attributes:
        momentum: That of the last update; None before the first.
    """

    def __init__(self, online: nn.Module, evaluates: bool = False) -> None:
        super().__init__()
        self.momentum: float | None = None
        self.evaluates = evaluates
        self.module = copy.deepcopy(online).requires_grad_(False)
        if evaluates:
            self.module.eval()

    def train(self, mode: bool = True) -> MomentumEncoder:
        """Set the mode; the copy keeps to evaluation where it was asked for."""
        super().train(mode)
        if self.evaluates:
            self.module.eval()
        return self

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """Apply the averaged network without recording gradients."""
        return self.module(*args)

    @torch.no_grad()
    def forward_tokens(self, images: Tensor, layers: Sequence[int] = (), normalize_layers: bool = True) -> Tokens:
        """Return the tokens of whole images by an averaged backbone, without recording gradients."""
        backbone = cast(Backbone, self.module)
        return backbone.forward_tokens(images, layers=layers, normalize_layers=normalize_layers)

    @torch.no_grad()
    def update(self, online: nn.Module, momentum: float) -> None:
        """Move every parameter: ``k <- momentum * k + (1 - momentum) * q``. Call it once an optimiser step.

        Args:
            online: Has a parameter of each name that the average has; what it has beside these (a mask token, a
                predictor) stays out.
            momentum: Share of the old average that is kept.

        Raises:
            ValueError: A parameter of the average is missing there.
        """
        self.momentum = momentum
        own, others = dict(self.module.named_parameters()), dict(online.named_parameters())
        if missing := own.keys() - others.keys():
            raise ValueError(f"the network that the average follows has no parameter {min(missing)}")
        torch._foreach_lerp_(list(own.values()), [others[name].detach() for name in own], 1 - momentum)
