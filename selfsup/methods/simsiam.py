"""SimSiam: predict one view's projection from the other's with one network; a stop-gradient replaces all else.

Both views go through the same backbone and projector; a bottleneck predictor turns each projection into the other,
which is taken as a constant. Without that stop-gradient the outputs collapse to one point; with it neither negatives
nor a momentum encoder are needed. Chen and He, "Exploring Simple Siamese Representation Learning", 2020.

Each view passes through the network by itself, so that BatchNorm never mixes the statistics of the two views. The
predictor's learning rate does not decay: it should keep up with the latest projections.

Deviations: ``optimizer.warmup_epochs`` is 0 in the paper; where it is set, it leaves the predictor's rate constant too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from selfsup.functional import feature_std, negative_cosine
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.optimization import decay_groups
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class SimSiamConfig(MethodConfig):
    """SimSiam's settings, with the paper's defaults.

    Attributes:
        hidden_dim: Width of the projector's two hidden layers.
        output_dim: Width of projection and prediction.
        predictor_dim: Width of the predictor's hidden layer, a bottleneck: a quarter of ``output_dim`` in the paper.
    """

    name: str = "simsiam"
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(2048, least=1)
    predictor_dim: int = setting(512, least=1)


@methods.register("simsiam", SimSiamConfig, optimizer="sgd", augment="moco_v2")
class SimSiam(Method):
    """Predict the other view's projection, held constant by a stop-gradient."""

    def __init__(self, config: SimSiamConfig, parts: Parts) -> None:
        super().__init__(parts)
        hidden, dim = config.hidden_dim, config.output_dim
        self.projector = projection_head(
            [self.backbone.dim, hidden, hidden, dim], bias=False, batch_norm=True, last_norm="fixed"
        )
        self.predictor = projection_head([dim, config.predictor_dim, dim], bias=False, last_bias=True, batch_norm=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the mean of the two directions' negative cosines."""
        z1, z2 = (self.projector(self.backbone(view.image)) for view in views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2
        # the paper's sign of collapse: 0 there, 1/sqrt(output_dim) for outputs spread evenly over the sphere
        return StepOutput(loss, {"projection_std": feature_std(z1.detach())})

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the predictor's parameters apart from the others: their learning rate stays constant."""
        decay, exclude = self.optimizer_config.weight_decay, self.optimizer_config.exclude_1d
        encoder = decay_groups(nn.ModuleList([self.backbone, self.projector]), decay, exclude)
        predictor = decay_groups(self.predictor, decay, exclude)
        return encoder + [{**group, "constant_lr": True} for group in predictor]
