"""data2vec: predict, where blocks of an image are masked, what a slow copy of the network makes of the whole image.

The student sees mask tokens in the place of blocks; the teacher, its moving average in evaluation mode, sees
everything. The target of a token is the average of the teacher's last blocks, normalised before and after, so it holds
what the whole image says at that place. Baevski et al., "data2vec: A General Framework for Self-supervised Learning in
Speech, Vision and Language", 2022. Read: facebookresearch/data2vec_vision, af9a363, whose command for ViT-B the
defaults follow.

The network that remains is the student, as the authors fine-tune. Nothing teaches its class token, so its feature is
the mean of the patch tokens (``backbone=vit_small_mean``). The prediction starts from the last block and not from the
norm behind it, which therefore stays as it began and normalises the features that are evaluated.

Deviations: timm's transformers with learned positions, where the authors have relative ones shared by all layers. Every
image has the same number of masked tokens: where blocks stop short of it, single tokens fill up, as in DINOv3. The
teacher's momentum is constant, as it is in the authors' command, whose ``ema_start_at 0`` leaves their rise unused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from selfsup.errors import UserError
from selfsup.functional import block_mask, layer_target, masked_smooth_l1
from selfsup.functional.masks import masked_count
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.masked import check_masked, check_pooling
from selfsup.methods.parts import Parts
from selfsup.nn import MaskToken, MomentumEncoder
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class Data2VecConfig(MethodConfig):
    """data2vec's settings, with the authors' defaults for ViT-B.

    Attributes:
        mask_ratio: Share of the tokens that are masked; the authors' 120 of 196.
        min_block: Share of the tokens that the smallest block has; the authors' 16 of 196.
        layers: Last blocks of the teacher whose average is the target.
        beta: β of the smooth L1 error, from where on it is linear.
        momentum: Share of the old teacher that a step keeps. It is meant for 500,000 steps; for a few thousand take
            0.99 or so.
    """

    name: str = "data2vec"
    mask_ratio: float = setting(120 / 196, above=0, below=1)
    min_block: float = setting(16 / 196, least=0, below=1)
    layers: int = setting(6, least=1)
    beta: float = setting(2.0, above=0)
    momentum: float = setting(0.9998, least=0, most=1)


@methods.register("data2vec", Data2VecConfig, optimizer="data2vec", augment="data2vec", backbone="vit_small_mean")
class Data2Vec(Method):
    """Predict a momentum encoder's features of the whole image where blocks are masked."""

    view_count = (1, 1)

    def __init__(self, config: Data2VecConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.config = config
        self.grid, _ = check_masked(parts, config.mask_ratio)
        check_pooling(parts, "data2vec")
        length = self.grid[0] * self.grid[1]
        self.masked, self.least = masked_count(length, config.mask_ratio), max(1, round(config.min_block * length))
        if config.min_block > config.mask_ratio:
            raise UserError(
                f"method.min_block={config.min_block} is more than method.mask_ratio={config.mask_ratio}, all that is "
                "masked; lower it."
            )
        network: Any = self.backbone.network
        if config.layers > len(network.blocks):
            raise UserError(
                f"method.layers={config.layers} is more than the network's {len(network.blocks)} blocks; lower it."
            )
        network.norm.requires_grad_(False)
        self.mask_token = MaskToken(self.backbone.dim)
        self.regressor = nn.Linear(self.backbone.dim, self.backbone.dim)
        self.teacher = MomentumEncoder(self.backbone, evaluates=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the smooth L1 error at the masked tokens, and how much the targets of an image differ."""
        images = views[0].image
        mask = block_mask(self.draw(batch.index, 0), self.grid, self.masked, self.least).to(images.device)
        above = range(-self.config.layers, 0)
        layers = self.teacher.forward_tokens(images, above, normalize_layers=False).layers
        target = layer_target([layer.patches for layer in layers])
        seen = self.backbone.forward_tokens(images, mask, self.mask_token(), None, (-1,), normalize_layers=False)
        prediction = self.regressor(seen.layers[0].patches)
        loss = masked_smooth_l1(prediction, target, mask, self.config.beta)
        return StepOutput(loss, {"target_std": target.std(dim=1).mean()})

    def after_optimizer_step(self) -> None:
        """Let the teacher follow."""
        self.teacher.update(self.backbone, self.config.momentum)
