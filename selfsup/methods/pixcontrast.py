"""PixContrast: cells of two views that show the same place attract, all other cells of the other view repel.

The two crops of an image overlap, and geometry says which cells of their maps match; InfoNCE over the cells of the
other view, encoded by a momentum encoder, does the rest. It is the contrastive sibling of PixPro: no propagation
module, and the negatives are of the same image, so it learns to tell places apart. Xie et al., "Propagate Yourself:
Exploring Pixel-Level Consistency for Unsupervised Visual Representation Learning", 2021, section 3.1.

There is no code by the authors. Our reading, where the text leaves a choice: projector, momentum and schedule are
PixPro's; the loss is averaged over the cells that have a match, then over the images (one without a match adds 0), then
over the two directions; each view passes through each network by itself.

Deviations: where cells lie is measured between the outer edges of the image, see ``pixpro_mask``.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.functional import pixcontrast_loss, pixpro_mask
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import DenseEncoder, MomentumEncoder, check_dense, dense_head
from selfsup.optimization import cosine_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class PixContrastConfig(MethodConfig):
    """PixContrast's settings.

    Attributes:
        temperature: τ of the loss.
        threshold: Cells match that are nearer than this many diagonals of the larger cell.
        momentum: Share of the old key encoder that the first step keeps; it rises to 1 along a cosine.
        hidden_dim: Width of the projector's hidden layer.
        output_dim: Width of the projection.
    """

    name: str = "pixcontrast"
    temperature: float = setting(0.3, above=0)
    threshold: float = setting(0.7, above=0)
    momentum: float = setting(0.99, least=0, most=1)
    hidden_dim: int = setting(4096, least=1)
    output_dim: int = setting(256, least=1)


@methods.register("pixcontrast", PixContrastConfig, optimizer="lars", augment="byol")
class PixContrast(Method):
    """Contrast the cells of two views: those that show the same place with all others of the image (InfoNCE)."""

    needs_geometry = True

    def __init__(self, config: PixContrastConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_dense(self.backbone, self.views.sizes)
        self.temperature, self.threshold, self.momentum = config.temperature, config.threshold, config.momentum
        self.projector = dense_head([self.backbone.dim, config.hidden_dim, config.output_dim], batch_norm=True)
        self.key_encoder = MomentumEncoder(self.encoder)

    @property
    def encoder(self) -> DenseEncoder:
        """Backbone and projector: what the key encoder follows."""
        return DenseEncoder(self.backbone, self.projector)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the mean of both directions."""
        (_, query1), (_, query2) = (self.encoder(view.image) for view in views)
        (_, key1), (_, key2) = (self.key_encoder(view.image) for view in views)
        mask = pixpro_mask(views[0].to_source, views[1].to_source, query1.shape[-1], self.threshold)
        forth = pixcontrast_loss(query1, key2, mask, self.temperature)
        back = pixcontrast_loss(query2, key1, mask.transpose(1, 2), self.temperature)
        return StepOutput((forth + back) / 2, {"matched_cells": mask.any(dim=2).float().mean()})

    def after_optimizer_step(self) -> None:
        """Let the key encoder follow."""
        self.key_encoder.update(self.encoder, cosine_schedule(self.momentum, 1.0, self.progress))
