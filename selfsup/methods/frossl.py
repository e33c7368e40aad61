"""FroSSL: views agree, and the correlation matrix of each has even eigenvalues, as its Frobenius norm says.

Of all matrices with the same trace, the one with even eigenvalues has the least Frobenius norm, so its logarithm
measures how far a view is from filling all dimensions, without an eigenvalue being computed. Each view is measured by
itself, and a squared distance brings views together. Skean et al., "FroSSL: Frobenius Norm Minimization for Efficient
Multiview Self-Supervised Learning", 2024.

Defaults are those of the authors' code and its configuration for ImageNet (OFSkean/FroSSL, 3ff28da and b27cc1a).

Deviations: for more than two views, dimensions are standardised as for two; the authors' code makes rows unit there.
The distance is that between the views of a pair at any number of views.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import frossl_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class FroSSLConfig(MethodConfig):
    """FroSSL's settings, with the defaults of the authors' code.

    Attributes:
        invariance_weight: Of the squared distance between views.
        hidden_dim: Width of the head's hidden layers.
        output_dim: Width of the embedding.
        head_layers: Linear layers of the head.
    """

    name: str = "frossl"
    invariance_weight: float = setting(1.0, least=0)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(1024, least=1)
    head_layers: int = setting(3, least=1)


@methods.register("frossl", FroSSLConfig, optimizer="lars", augment="byol")
class FroSSL(Method):
    """Make views agree while the eigenvalues of each view's correlation become even (FroSSL)."""

    view_count = (2, None)
    couples_images = True

    def __init__(self, config: FroSSLConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.invariance_weight = config.invariance_weight
        hidden = [config.hidden_dim] * (config.head_layers - 1)
        # the loss centres each dimension, so a bias of the last layer would get no gradient
        self.head = projection_head([self.backbone.dim, *hidden, config.output_dim], last_bias=False, batch_norm=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return evenness and distance of the views."""
        embeddings = self.head(self.encode(views).flatten(0, 1)).unflatten(0, (len(views), -1))
        return StepOutput(frossl_loss(embeddings, self.invariance_weight, group=world()))
