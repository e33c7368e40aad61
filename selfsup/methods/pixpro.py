"""PixPro: each cell of one view's map, mixed with the cells like it, agrees with the cells of the other view there.

Where two crops of an image overlap, geometry says which cells show the same place, so pixels are their own pretext
task and no negatives are needed. A propagation module smooths the online map by its own similarities; the target is the
plain map of a momentum encoder, taken as a constant. Xie et al., "Propagate Yourself: Exploring Pixel-Level Consistency
for Unsupervised Visual Representation Learning", 2021.

The loss has the factor 2 of the authors' code, so that -4 is perfect. Each view passes through each network by itself,
as in BYOL. The target's momentum rises to 1 along a cosine that is a function of the optimiser step, so a resumed run
goes on where it was (the authors' code starts the schedule anew).

Deviations: where cells lie is measured between the outer edges of the image, see ``pixpro_mask``. The instance branch
takes the mean of the backbone's map to BYOL's two perceptrons.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from selfsup.functional import negative_cosine, pixpro_loss, pixpro_mask
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import DenseEncoder, MomentumEncoder, PixelPropagation, check_dense, dense_head, projection_head
from selfsup.optimization import cosine_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class PixProConfig(MethodConfig):
    """PixPro's settings, with the defaults of the authors' code.

    Attributes:
        threshold: Cells match that are nearer than this many diagonals of the larger cell.
        gamma: Exponent of the similarities that the propagation module mixes by, at least 1.
        momentum: Share of the old target that the first step keeps; it rises to 1 along a cosine.
        hidden_dim: Width of the projector's hidden layer.
        output_dim: Width of the projection.
        instance_weight: Weight of a BYOL loss of the pooled features; with 0 its heads are not built.
    """

    name: str = "pixpro"
    threshold: float = setting(0.7, above=0)
    gamma: float = setting(2.0, least=1)
    momentum: float = setting(0.99, least=0, most=1)
    hidden_dim: int = setting(4096, least=1)
    output_dim: int = setting(256, least=1)
    instance_weight: float = setting(0.0, least=0)


@methods.register("pixpro", PixProConfig, optimizer="lars", augment="byol")
class PixPro(Method):
    """Predict, after pixel propagation, the other view's cells that show the same place, without negatives."""

    needs_geometry = True

    def __init__(self, config: PixProConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_dense(self.backbone, self.views.sizes)
        self.threshold, self.momentum, self.instance_weight = config.threshold, config.momentum, config.instance_weight
        hidden, dim = config.hidden_dim, config.output_dim
        self.projector = dense_head([self.backbone.dim, hidden, dim], batch_norm=True)
        self.propagation = PixelPropagation(dim, config.gamma)
        self.instance_projector, self.instance_predictor = nn.ModuleList(), nn.ModuleList()
        if self.instance_weight:
            self.instance_projector.append(projection_head([self.backbone.dim, hidden, dim], batch_norm=True))
            self.instance_predictor.append(projection_head([dim, hidden, dim], batch_norm=True))
        self.target = MomentumEncoder(self.encoder)

    @property
    def encoder(self) -> DenseEncoder:
        """Backbone and projectors: what the target follows."""
        return DenseEncoder(self.backbone, self.projector, *self.instance_projector)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the sum of both directions."""
        (_, map1, *pooled1), (_, map2, *pooled2) = (self.encoder(view.image) for view in views)
        (_, target1, *pooled_target1), (_, target2, *pooled_target2) = (self.target(view.image) for view in views)
        mask = pixpro_mask(views[0].to_source, views[1].to_source, map1.shape[-1], self.threshold)
        loss = pixpro_loss(self.propagation(map1), target2, mask)
        loss = loss + pixpro_loss(self.propagation(map2), target1, mask.transpose(1, 2))
        logs = {"matched_cells": mask.any(dim=2).float().mean()}
        for predictor in self.instance_predictor:
            one, other = predictor(pooled1[0]), predictor(pooled2[0])
            instance = negative_cosine(one, pooled_target2[0]) + negative_cosine(other, pooled_target1[0])
            logs |= {"pixel_loss": loss, "instance_loss": 2 * instance}
            loss = loss + self.instance_weight * 2 * instance
        return StepOutput(loss, logs)

    def after_optimizer_step(self) -> None:
        """Let the target follow."""
        self.target.update(self.encoder, cosine_schedule(self.momentum, 1.0, self.progress))
