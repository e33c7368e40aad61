"""VICRegL: VICReg of the pooled features, and of pairs of cells that look alike or show the same place.

Two criteria share a backbone. The global one is VICReg. The local one pairs the cells of two views twice, by the
distance of their embeddings and by their distance in the source image, and applies VICReg to the pairs, each place of a
map by itself. A weight trades features that classify against features that segment. Bardes et al., "VICRegL:
Self-Supervised Learning of Local Visual Features", 2022.

Defaults are those of the authors' code for a ResNet of two crops (facebookresearch/VICRegL, d14c226). Variance and
covariance are means over the two views, in both criteria, as there, where VICReg adds up the covariances.

Deviations: two views of one size, without the small crops of their ConvNeXt. Where cells lie is measured between the
outer edges of the image, mirrored views included.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import vicreg_loss, vicregl_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import DenseEncoder, check_dense, dense_head, projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class VICRegLConfig(MethodConfig):
    """VICRegL's settings, with the defaults of the authors' code.

    Attributes:
        global_weight: α, of the criterion of pooled features; that of cells has 1 - α.
        first_matches: Cells of the first view that are paired by place with the second's; all are paired by features.
        second_matches: The same from the second view to the first.
        invariance_weight: λ, of the distance between the views.
        variance_weight: μ, of the hinge on the standard deviations.
        covariance_weight: ν, of the off-diagonal covariances.
        hidden_dim: Width of the hidden layers of the head of the pooled feature.
        output_dim: Width of its embedding.
        local_dim: Width of every layer of the head of the cells.
    """

    name: str = "vicregl"
    global_weight: float = setting(0.75, least=0, most=1)
    first_matches: int = setting(20, least=1)
    second_matches: int = setting(4, least=1)
    invariance_weight: float = setting(25.0, least=0)
    variance_weight: float = setting(25.0, least=0)
    covariance_weight: float = setting(1.0, least=0)
    hidden_dim: int = setting(8192, least=1)
    output_dim: int = setting(8192, least=1)
    local_dim: int = setting(512, least=1)


@methods.register("vicregl", VICRegLConfig, optimizer="barlow_twins", augment="byol")
class VICRegL(Method):
    """VICReg of pooled features and of pairs of cells, matched by features and by place (VICRegL)."""

    couples_images = True
    needs_geometry = True

    def __init__(self, config: VICRegLConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_dense(self.backbone, self.views.sizes)
        self.config = config
        self.weights = (config.invariance_weight, config.variance_weight, config.covariance_weight)
        pooled = [self.backbone.dim, config.hidden_dim, config.hidden_dim, config.output_dim]
        # no term sees a bias of the last layers, which would get no gradient
        self.head = projection_head(pooled, last_bias=False, batch_norm=True)
        self.local_head = dense_head([self.backbone.dim, *[config.local_dim] * 3], last_bias=False, batch_norm=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the weighted sum of both criteria."""
        encoder = DenseEncoder(self.backbone, self.local_head, self.head)
        (_, map1, z1), (_, map2, z2) = (encoder(view.image) for view in views)
        invariance, variance, covariance = self.weights
        pooled = vicreg_loss(z1, z2, invariance, variance, covariance / 2, group=world())
        places = [view.to_source for view in views]
        matches = (self.config.first_matches, self.config.second_matches)
        cells = vicregl_loss((map1, map2), places, matches, self.weights, group=world())
        weight = self.config.global_weight
        return StepOutput(weight * pooled + (1 - weight) * cells, {"global_loss": pooled, "local_loss": cells})
