"""BYOL: predict, from one view, what a slowly moving copy of the network says of the other view; no negatives.

The online network (backbone, projector, predictor) sees one view; the target (backbone and projector, an exponential
moving average of the online ones) sees the other, and the loss is the squared distance of their normalised outputs,
both ways round. The predictor and the slow target together keep the constant solution away. Grill et al., "Bootstrap
Your Own Latent: A New Approach to Self-Supervised Learning", 2020.

Each view passes through each network by itself, so that BatchNorm never mixes the statistics of the two views. The
target's momentum rises from ``momentum`` to 1 along a cosine over the training; it moves after the optimiser step.

Deviations: none in the method.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from selfsup.functional import negative_cosine
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import MomentumEncoder, projection_head
from selfsup.optimization import cosine_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class BYOLConfig(MethodConfig):
    """BYOL's settings, with the defaults of the paper's run of 1000 epochs.

    Attributes:
        momentum: Share of the old target that the first step keeps; it rises to 1 along a cosine. The authors take
            0.99 for 100 and 300 epochs.
        hidden_dim: Width of the hidden layer of projector and predictor.
        output_dim: Width of projection and prediction.
    """

    name: str = "byol"
    momentum: float = setting(0.996, least=0, most=1)
    hidden_dim: int = setting(4096, least=1)
    output_dim: int = setting(256, least=1)


@methods.register("byol", BYOLConfig, optimizer="lars", augment="byol")
class BYOL(Method):
    """Predict a momentum encoder's projection of the other view, without negatives."""

    def __init__(self, config: BYOLConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.momentum = config.momentum
        hidden, dim = config.hidden_dim, config.output_dim
        self.projector = projection_head([self.backbone.dim, hidden, dim], batch_norm=True, last_bias=False)
        self.predictor = projection_head([dim, hidden, dim], batch_norm=True, last_bias=False)
        self.target = MomentumEncoder(self.encoder)

    @property
    def encoder(self) -> nn.Sequential:
        """Backbone and projector: what the target follows."""
        return nn.Sequential(self.backbone, self.projector)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the two directions' sum of ``2 - 2 cos``."""
        first, second = views
        prediction1, prediction2 = (self.predictor(self.encoder(view.image)) for view in views)
        target1, target2 = self.target(first.image), self.target(second.image)
        return StepOutput(4 + 2 * negative_cosine(prediction1, target2) + 2 * negative_cosine(prediction2, target1))

    def after_optimizer_step(self) -> None:
        """Let the target follow."""
        self.target.update(self.encoder, cosine_schedule(self.momentum, 1.0, self.progress))
