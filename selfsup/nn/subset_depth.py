"""Stochastic depth that saves time: a block's halves run on some of the images of the batch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn.backbone import Backbone


class SubsetBlock(Block):  # type: ignore[misc]
    """A block of timm's vision transformers whose residuals are of max(⌊B(1 − rate)⌋, 1) of the B images in training.

    They are drawn anew for attention and perceptron, and what they add is multiplied by B over their number, so that
    the expectation is that of dropping images one by one. The others go on as they are and cost nothing.
    """

    subset_rate: float

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return tokens ``[B,K,D]``."""
        x = self._added(x, lambda tokens: self.ls1(self.attn(self.norm1(tokens), *args, **kwargs)))
        return self._added(x, lambda tokens: self.ls2(self.mlp(self.norm2(tokens))))

    def _added(self, x: Tensor, residual: Callable[[Tensor], Tensor]) -> Tensor:
        if not self.training:
            return x + residual(x)
        count = max(int(len(x) * (1 - self.subset_rate)), 1)
        drawn = torch.randperm(len(x), device=x.device)[:count]
        return x.index_add(0, drawn, residual(x[drawn]).to(x.dtype), alpha=len(x) / count)


def drop_images(backbone: Backbone, rate: float) -> None:
    """Let every half of a transformer's blocks leave out a share of the images in training, in place.

    The keys of its weights stay. Masks of attention that differ from image to image do not fit.

    Args:
        backbone: Of timm's plain vision transformers.
        rate: Share of the images, the same at every depth.

    Raises:
        UserError: Another network, or one with drop path of its own.

    Source:
        Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023, "efficient stochastic depth".
    """
    blocks = getattr(backbone.network, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or {type(block) for block in blocks} != {Block}:
        raise UserError(
            f"backbone.subset_drop_path: {type(backbone.network).__name__} has no blocks of a plain vision "
            "transformer; leave it out, or take backbone=vit_small."
        )
    for block in blocks:
        assert isinstance(block, Block)
        if not isinstance(block.drop_path1, nn.Identity):
            raise UserError(
                "backbone.subset_drop_path and backbone.kwargs.drop_path_rate are two kinds of stochastic depth; leave "
                "one of them out."
            )
        block.__class__ = SubsetBlock
        block.subset_rate = rate
