"""The transformers whose tokens can be judged one by one."""

from __future__ import annotations

from typing import Any

from torch import nn

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
