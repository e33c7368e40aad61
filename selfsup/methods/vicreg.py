"""VICReg: views of an image agree while every dimension keeps its spread and says something of its own.

Three terms act on the embeddings: invariance (mean squared error between the views), variance (a hinge that keeps each
dimension's standard deviation at 1 or above) and covariance (the off-diagonal entries go to 0). Variance and covariance
regard each view by itself, so nothing ties the two branches but the first term. Bardes et al., "VICReg:
Variance-Invariance-Covariance Regularization for Self-Supervised Learning", 2022.

Each view passes the networks apart, with BatchNorm statistics of its own, as in the authors' code.

Deviations: the covariance divides by the images there are; the authors' divides by the nominal batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import vicreg_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class VICRegConfig(MethodConfig):
    """VICReg's settings, with the defaults of the authors' code.

    Attributes:
        invariance_weight: λ, of the distance between the views.
        variance_weight: μ, of the hinge on the standard deviations.
        covariance_weight: ν, of the off-diagonal covariances.
        hidden_dim: Width of the head's hidden layers.
        output_dim: Width of the embedding.
        head_layers: Linear layers of the head.
    """

    name: str = "vicreg"
    invariance_weight: float = setting(25.0, least=0)
    variance_weight: float = setting(25.0, least=0)
    covariance_weight: float = setting(1.0, least=0)
    hidden_dim: int = setting(8192, least=1)
    output_dim: int = setting(8192, least=1)
    head_layers: int = setting(3, least=1)


@methods.register("vicreg", VICRegConfig, optimizer="barlow_twins", augment="byol")
class VICReg(Method):
    """Make views agree under a floor on each dimension's variance and a penalty on covariances (VICReg)."""

    couples_images = True

    def __init__(self, config: VICRegConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.weights = (config.invariance_weight, config.variance_weight, config.covariance_weight)
        hidden = [config.hidden_dim] * (config.head_layers - 1)
        self.head = projection_head([self.backbone.dim, *hidden, config.output_dim], last_bias=False, batch_norm=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the weighted sum of invariance, variance and covariance."""
        z1, z2 = (self.head(self.backbone(view.image)) for view in views)
        return StepOutput(vicreg_loss(z1, z2, *self.weights, group=world()))
