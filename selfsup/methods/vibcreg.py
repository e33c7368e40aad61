"""VIbCReg: VICReg with correlations in place of covariances, and a head that may end in whitening.

VICReg's third term grows with the square of the embedding's scale, and its weight with it. Here the off-diagonal
entries are correlations, so the term has one scale whatever the embedding's. Lee and Aune, "VIbCReg:
Variance-Invariance-better-Covariance Regularization for Self-Supervised Learning on Time Series", 2021.

Made for time series; for images, head and weights are those of solo-learn (070dc14, 3551862).

Deviations: without the layer of iterative normalisation that the paper has behind the head, as in solo-learn's default.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from selfsup.distributed import world
from selfsup.functional import vibcreg_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class VIbCRegConfig(MethodConfig):
    """VIbCReg's settings, with the defaults of solo-learn.

    Attributes:
        invariance_weight: λ, of the distance between the views.
        variance_weight: μ, of the hinge on the standard deviations.
        covariance_weight: ν, of the off-diagonal correlations.
        hidden_dim: Width of the head's two hidden layers.
        output_dim: Width of the embedding.
    """

    name: str = "vibcreg"
    invariance_weight: float = setting(25.0, least=0)
    variance_weight: float = setting(25.0, least=0)
    covariance_weight: float = setting(200.0, least=0)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(2048, least=1)


@methods.register("vibcreg", VIbCRegConfig, optimizer="lars", augment="byol")
class VIbCReg(Method):
    """Make views agree under a floor on each dimension's variance and a penalty on correlations (VIbCReg)."""

    couples_images = True

    def __init__(self, config: VIbCRegConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.weights = (config.invariance_weight, config.variance_weight, config.covariance_weight)
        dims = [self.backbone.dim, config.hidden_dim, config.hidden_dim, config.output_dim]
        # views, variances and correlations do not see a bias of the last layer, which would get no gradient
        self.head = projection_head(dims, last_bias=False, batch_norm=True, activation=nn.GELU)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the weighted sum of invariance, variance and correlation."""
        z1, z2 = (self.head(self.backbone(view.image)) for view in views)
        return StepOutput(vibcreg_loss(z1, z2, *self.weights, group=world()))
