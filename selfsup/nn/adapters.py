"""Low-rank adapters: a few weights beside the linear layers of a network, which stay as they are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn.backbone import Backbone


class AdaptedLinear(nn.Linear):
    r"""A linear layer with a trained product of two thin matrices beside its weight, which is frozen.

    .. math:: y = W x + b + \frac{\alpha}{r} B A x

    with ``A`` ``[r,in]`` and ``B`` ``[out,r]``. ``B`` starts at zero, so that the layer starts as it was, and ``A`` is
    drawn as the weight of a linear layer is. The keys of weight and bias stay those of ``nn.Linear``. Hu et al.,
    "LoRA: Low-Rank Adaptation of Large Language Models", 2021.

    Args:
        linear: The layer, whose very tensors are used.
        rank: ``r``.
        alpha: ``α``.

    Raises:
        UserError: The rank is above what the layer's weight can have.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        most = min(linear.in_features, linear.out_features)
        if rank > most:
            raise UserError(
                f"backbone.adapter_rank={rank} is more than a layer of {linear.in_features} inputs and "
                f"{linear.out_features} outputs can have; set it to at most {most}."
            )
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.adapter_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.adapter_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.adapter_a, a=math.sqrt(5))
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[…,in]`` to ``[…,out]``."""
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.adapter_a), self.adapter_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain layer that gives the same, up to rounding."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight + self.scale * self.adapter_b @ self.adapter_a)
        plain.bias = self.bias
        return plain.train(self.training)


def adapt(backbone: Backbone, rank: int, alpha: float | None = None) -> int:
    """Freeze a backbone, give its linear layers adapters, in place, and return how many layers that are.

    Args:
        backbone: Its linear layers are those of a transformer's attention and perceptrons, or of ConvNeXt's blocks.
        rank: Of the adapters.
        alpha: Their output is multiplied by ``alpha / rank``; None is the rank.

    Raises:
        UserError: It has no linear layers, or smaller ones.
    """
    layers = [name for name, module in backbone.network.named_modules() if type(module) is nn.Linear]
    if not layers:
        raise UserError(
            "backbone.adapter_rank: this network has no linear layers to adapt; take a transformer, or freeze layers "
            "of it (backbone.freeze)."
        )
    backbone.network.requires_grad_(False)
    backbone.still = ("",)
    for name in layers:
        linear = backbone.network.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        backbone.network.set_submodule(name, AdaptedLinear(linear, rank, rank if alpha is None else alpha))
    backbone.train(backbone.training)
    return len(layers)


def merge(backbone: Backbone) -> None:
    """Add the adapters of a backbone to its weights, in place; without any it stays as it is."""
    for name, module in list(backbone.network.named_modules()):
        if isinstance(module, AdaptedLinear):
            backbone.network.set_submodule(name, module.merged())
