"""The transformers whose tokens can be judged one by one, and what is read of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn.backbone import Backbone
from selfsup.nn.tokens import check_tokens


def transformer_of(network: nn.Module) -> Backbone:
    """Return a backbone whose tokens are known: ``forward_tokens`` gives those of any block.

    Raises:
        UserError: It is another network, by name.
    """
    if not isinstance(network, Backbone):
        raise UserError(
            f"backbone: this needs the tokens of a vision transformer that this toolkit opened, and "
            f"{type(network).__name__} is none; take a run, timm:NAME or a file of weights with backbone=vit_small."
        )
    check_tokens(network.network)
    return network


def has_class_token(backbone: Backbone) -> bool:
    """Whether the first of the tokens before the patches stands for the class."""
    network: Any = backbone.network
    return getattr(network, "cls_token", None) is not None


class TokenSummaries(nn.Module):
    """A transformer whose output is the class token and the mean of the patches of each of its last blocks.

    Each is behind the final norm. Without a class token there are the means alone.

    Args:
        backbone: See :func:`transformer_of`.
        blocks: Number of blocks, at most those there are.
    """

    def __init__(self, backbone: Backbone, blocks: int) -> None:
        super().__init__()
        self.backbone, self.blocks = backbone, blocks
        self.normalization, self.in_channels = backbone.normalization, backbone.in_channels

    def forward(self, images: Tensor) -> Tensor:
        """Return float ``[B, 2 · blocks · D]``, or half of that without a class token; :meth:`split` takes it apart."""
        layers = self.backbone.forward_tokens(images, layers=range(-self.blocks, 0)).layers
        means = [layer.patches.mean(1) for layer in layers]
        classes = [layer.prefix[:, 0] for layer in layers] if has_class_token(self.backbone) else []
        return torch.cat([*classes, *means], 1)

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return class tokens and means of the patches, ``[N,blocks,D]`` each; the first is ``[N,0,D]`` without any."""
        parts = features.view(len(features), -1, self.backbone.dim)
        return parts[:, : -self.blocks], parts[:, -self.blocks :]
