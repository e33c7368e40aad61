"""SimMIM: hide squares of an image behind a learned token, and predict their raw pixels with one linear layer.

All tokens run through the encoder, a mask token in the place of each hidden patch before positions are added. The loss
is the absolute error of the hidden pixels. Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", 2022.
Read: microsoft/SimMIM, d3e29bc.

The network that remains is the encoder. Nothing teaches its class token, so its feature is the mean of the patch tokens
(``backbone=vit_small_mean``), seen without masks. A Swin transformer (``backbone.name=swin_…``), the authors' other
network, has its patches replaced behind the stem; each token of its last stage predicts the square of 32 pixels that it
stands for, so that squares are 8 patches of 4 (``method.mask_cell=8``).

Deviations: networks are timm's, the vision transformer with learned positions where the authors have relative ones
shared by all layers. round(ratio · squares) squares are masked, where the authors round up: 29 and 30 of 49. The mask
token begins normal, where theirs is cut at one standard deviation. The authors add 1e-5 to the number of masked pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from selfsup.functional import grid_mask, masked_absolute_error, patchify, unpatchify
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.masked import check_masked, check_pooling
from selfsup.methods.parts import Parts
from selfsup.nn import MaskToken, token_stride
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class SimMIMConfig(MethodConfig):
    """SimMIM's settings, with the paper's defaults for patches of 16 pixels.

    Attributes:
        mask_ratio: Share of the squares that are hidden.
        mask_cell: Side of a square in patches; the paper's squares are 32 pixels, two patches of 16, or eight of 4.
            Single patches (1) are a task that neighbours nearly solve.
    """

    name: str = "simmim"
    mask_ratio: float = setting(0.6, above=0, below=1)
    mask_cell: int = setting(2, least=1)


@methods.register("simmim", SimMIMConfig, optimizer="simmim", augment="simmim", backbone="vit_small_mean")
class SimMIM(Method):
    """Predict the raw pixels of hidden squares with one linear layer."""

    view_count = (1, 1)

    def __init__(self, config: SimMIMConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.config = config
        self.grid, self.patch = check_masked(parts, config.mask_ratio, config.mask_cell, windowed=True)
        check_pooling(parts, "SimMIM")
        network: Any = self.backbone.network
        self.channels, self.stride = self.backbone.in_channels, token_stride(network)
        self.mask_token = MaskToken(network.patch_embed.proj.out_channels)
        self.head = nn.Linear(self.backbone.dim, self.stride**2 * self.channels)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the mean absolute error of the hidden pixels."""
        images = views[0].image
        draw = self.draw(batch.index, 0)
        mask = grid_mask(draw, self.grid, self.config.mask_ratio, self.config.mask_cell).to(images.device)
        tokens = self.backbone.forward_tokens(images, mask, self.mask_token())
        last = images.shape[-2] // self.stride, images.shape[-1] // self.stride
        painted = unpatchify(self.head(tokens.patches), last, self.channels)
        return StepOutput(masked_absolute_error(patchify(painted, self.patch), patchify(images, self.patch), mask))
