"""NNBYOL: BYOL, whose target is the nearest neighbour of the other view's among earlier images.

As in BYOL a predictor of one view's projection meets what a slowly moving copy of the network says of the other view;
but the copy's projection is first replaced by its nearest neighbour in a queue of earlier ones, so that the two differ
by more than an augmentation can make them differ. No negatives. The appendix of Dwibedi et al., "With a Little Help
from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations", 2021, has the idea; the form is
solo-learn's.

Order within a step, as in solo-learn (9187ea3): look the neighbours up in the queue as it was, then enqueue the
target's projections of the first view. One that was already there would be its own neighbour, and the method would be
BYOL.

Deviations: the last layers of projector and predictor have no bias, as BYOL's here; solo-learn's have one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from selfsup.functional import nearest_neighbor, negative_cosine
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.methods.queued import check_queue
from selfsup.nn import FeatureQueue, MomentumEncoder, projection_head
from selfsup.optimization import cosine_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class NNBYOLConfig(MethodConfig):
    """NNBYOL's settings, with solo-learn's defaults for CIFAR and ImageNet-100.

    Attributes:
        momentum: Share of the old target that the first step keeps; it rises to 1 along a cosine.
        queue_size: Number of the target's projections in which neighbours are looked for, at least one batch.
        hidden_dim: Width of the hidden layer of projector and predictor.
        output_dim: Width of projection and prediction.
    """

    name: str = "nnbyol"
    momentum: float = setting(0.99, least=0, most=1)
    queue_size: int = setting(65536, least=1)
    hidden_dim: int = setting(4096, least=1)
    output_dim: int = setting(256, least=1)


@methods.register("nnbyol", NNBYOLConfig, optimizer="lars", augment="byol")
class NNBYOL(Method):
    """Predict the nearest neighbour, among earlier images, of a momentum encoder's projection of the other view."""

    def __init__(self, config: NNBYOLConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_queue(config.queue_size, parts.batch_size)
        self.momentum = config.momentum
        hidden, dim = config.hidden_dim, config.output_dim
        self.projector = projection_head([self.backbone.dim, hidden, dim], batch_norm=True, last_bias=False)
        self.predictor = projection_head([dim, hidden, dim], batch_norm=True, last_bias=False)
        self.target = MomentumEncoder(self.encoder)
        self.queue = FeatureQueue(config.queue_size, dim)

    @property
    def encoder(self) -> nn.Sequential:
        """Backbone and projector: what the target follows."""
        return nn.Sequential(self.backbone, self.projector)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the two directions' sum of ``2 - 2 cos``; each view passes each network by itself."""
        prediction1, prediction2 = (self.predictor(self.encoder(view.image)) for view in views)
        target1, target2 = (self.target(view.image) for view in views)
        support = self.queue.negatives()
        neighbour1, neighbour2 = (nearest_neighbor(z, support) for z in (target1, target2))
        self.queue.enqueue(target1)
        loss = 4 + 2 * negative_cosine(prediction1, neighbour2) + 2 * negative_cosine(prediction2, neighbour1)
        return StepOutput(loss)

    def after_optimizer_step(self) -> None:
        """Let the target follow."""
        self.target.update(self.encoder, cosine_schedule(self.momentum, 1.0, self.progress))
