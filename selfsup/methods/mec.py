"""MEC: make the code of a batch as long as it can be, while views of an image agree.

The length of the shortest code that tells the embeddings of a batch apart up to a given error grows with their entropy.
MEC maximises it for the predictions of one view taken jointly with a momentum encoder's projections of the other, by
the first four terms of the logarithm's series: the first makes views agree, the others keep images and dimensions from
saying the same. Liu et al., "Self-Supervised Learning via Maximum Entropy Coding", 2022.

The series converges where λ is small enough, and least easily at the start, when embeddings are alike; so λ rises to
its value over the first epochs. Heads are SimSiam's; each view passes each network by itself, and the matrix is over
the images of all ranks, as in the authors' code (xinliu20/MEC, 35045dc).

Deviations: the first epochs are a fraction of the training (``warmup``), as schedules are functions of its progress.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from selfsup.distributed import world
from selfsup.functional import mec_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import MomentumEncoder, projection_head
from selfsup.optimization import cosine_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View

FIRST = 8  # how much smaller λ begins


@dataclass
class MECConfig(MethodConfig):
    """MEC's settings, with the authors' defaults.

    Attributes:
        distortion: ε², the squared error that the code allows an embedding; λ = output_dim / (distortion · batch).
        order: Terms of the series.
        warmup: Fraction of the training in which 1/λ falls linearly from eight times its value (10 of 100 epochs).
        momentum: Share of the old target that the first step keeps; it rises to 1 along a cosine.
        hidden_dim: Width of the projector's two hidden layers.
        output_dim: Width of the projection.
        predictor_dim: Width of the predictor's hidden layer.
    """

    name: str = "mec"
    distortion: float = setting(64.0, above=0)
    order: int = setting(4, least=1)
    warmup: float = setting(0.1, least=0, most=1)
    momentum: float = setting(0.996, least=0, most=1)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(2048, least=1)
    predictor_dim: int = setting(512, least=1)


@methods.register("mec", MECConfig, optimizer="sgd", augment="byol")
class MEC(Method):
    """Maximise the coding length of predictions together with a momentum encoder's projections of the other view."""

    couples_images = True

    def __init__(self, config: MECConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.config = config
        hidden, dim = config.hidden_dim, config.output_dim
        self.inverse = config.distortion * parts.batch_size / dim
        self.projector = projection_head(
            [self.backbone.dim, hidden, hidden, dim], bias=False, batch_norm=True, last_norm="fixed"
        )
        self.predictor = projection_head([dim, config.predictor_dim, dim], bias=False, last_bias=True, batch_norm=True)
        self.target = MomentumEncoder(self.encoder)

    @property
    def encoder(self) -> nn.Sequential:
        """Backbone and projector: what the target follows."""
        return nn.Sequential(self.backbone, self.projector)

    @property
    def weight(self) -> float:
        """λ at present."""
        left = 1 - self.progress / self.config.warmup if self.config.warmup else 0.0
        return 1 / (self.inverse * (1 + (FIRST - 1) * max(0.0, left)))

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the mean of both directions' losses."""
        prediction1, prediction2 = (self.predictor(self.encoder(view.image)) for view in views)
        target1, target2 = (self.target(view.image) for view in views)
        weight, order = self.weight, self.config.order
        forth = mec_loss(prediction1, target2, weight, order, world())
        back = mec_loss(prediction2, target1, weight, order, world())
        return StepOutput((forth + back) / 2)

    def after_optimizer_step(self) -> None:
        """Let the target follow."""
        self.target.update(self.encoder, cosine_schedule(self.config.momentum, 1.0, self.progress))
