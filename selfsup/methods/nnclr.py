"""NNCLR: the positive of an image is its nearest neighbour among earlier images.

A support queue keeps the projections of the first view of recent batches. The neighbour that a view's projection finds
there contrasts with the predictor's output for the other view, so that positives differ by more than an augmentation
can make them differ; the other images' predictions are the negatives. Dwibedi et al., "With a Little Help from My
Friends: Nearest-Neighbor Contrastive Learning of Visual Representations", 2021.

Order within a step: look the neighbours up in the queue as it was, contrast, then enqueue the first view's projections.
A projection that was already in the queue would be its own neighbour, and the method would be SimCLR.

Deviations: the projector's last BatchNorm has a scale and no offset, as SimCLR's has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from selfsup.distributed import world
from selfsup.functional import cross_view_nce, nearest_neighbor
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.methods.queued import check_queue
from selfsup.nn import FeatureQueue, projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class NNCLRConfig(MethodConfig):
    """NNCLR's settings, with the paper's defaults.

    Attributes:
        temperature: τ of the loss.
        queue_size: Number of projections in which neighbours are looked for, at least one batch.
        hidden_dim: Width of the projector's two hidden layers.
        output_dim: Width of the projection.
        predictor_dim: Width of the predictor's hidden layer.
    """

    name: str = "nnclr"
    temperature: float = setting(0.1, above=0)
    queue_size: int = setting(98304, least=1)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(256, least=1)
    predictor_dim: int = setting(4096, least=1)


@methods.register("nnclr", NNCLRConfig, optimizer="lars", augment="simclr")
class NNCLR(Method):
    """Contrast the nearest neighbour of one view, among earlier images, with the other views of the batch."""

    couples_images = True

    def __init__(self, config: NNCLRConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_queue(config.queue_size, parts.batch_size)
        self.temperature = config.temperature
        hidden, dim = config.hidden_dim, config.output_dim
        self.projector = projection_head(
            [self.backbone.dim, hidden, hidden, dim], bias=False, batch_norm=True, last_norm="scale"
        )
        self.predictor = projection_head([dim, config.predictor_dim, dim], bias=False, last_bias=True, batch_norm=True)
        self.queue = FeatureQueue(config.queue_size, dim)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the mean of both directions' losses; a view has BatchNorm statistics of its own."""
        projections = [self.projector(self.backbone(view.image)) for view in views]
        predictions = [self.predictor(z) for z in projections]
        support = self.queue.negatives()
        losses = [
            cross_view_nce(nearest_neighbor(z, support), prediction, self.temperature, world())
            for z, prediction in zip(projections, reversed(predictions), strict=True)
        ]
        self.queue.enqueue(projections[0])
        return StepOutput(torch.stack(losses).mean())
