"""LeJEPA: views of an image meet at a point, and the points of all images are drawn to a standard normal cloud.

Any number of views, large and small, is pulled to the mean of the image's large ones. SIGReg tests along random
directions, drawn anew in each step, whether the embeddings of a view are standard normal, and its statistic is the
other half of the loss: a collapsed cloud fails it. There is one weight, and no teacher, predictor, stop-gradient or
queue. Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", 2025.

Defaults are those of the authors' README (rbalestr-lab/lejepa, a0d6745), the width of the embedding that of its minimal
example. The weight belongs to a batch: the statistic grows with the number of images.

Deviations: the head reads the backbone's feature, without the linear layer to 512 dimensions that the example puts
between; directions come from the seed and the step, not from a counter that is saved.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import centroid_distance, sigreg
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class LeJEPAConfig(MethodConfig):
    """LeJEPA's settings, with the authors' defaults.

    Attributes:
        regularizer_weight: λ, of SIGReg; the distance between views has 1 - λ. At another batch size than 512 it is
            another trade.
        slices: Random directions in each step.
        knots: Points at which characteristic functions are compared, from 0 to 3.
        hidden_dim: Width of the head's hidden layers.
        output_dim: Width of the embedding.
        head_layers: Linear layers of the head.
    """

    name: str = "lejepa"
    regularizer_weight: float = setting(0.05, least=0, most=1)
    slices: int = setting(1024, least=1)
    knots: int = setting(17, least=2)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(128, least=1)
    head_layers: int = setting(3, least=1)


@methods.register("lejepa", LeJEPAConfig, optimizer="lejepa", augment="lejepa")
class LeJEPA(Method):
    """Bring any number of views together while their embeddings become standard normal (SIGReg)."""

    view_count = (2, None)
    couples_images = True

    def __init__(self, config: LeJEPAConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.config = config
        self.centers = parts.views.sizes.count(parts.views.sizes[0])
        hidden = [config.hidden_dim] * (config.head_layers - 1)
        self.head = projection_head([self.backbone.dim, *hidden, config.output_dim], batch_norm=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the weighted sum of the distance to the large views' mean and of SIGReg."""
        config = self.config
        embeddings = self.head(self.encode(views).flatten(0, 1)).unflatten(0, (len(views), -1))
        distance = centroid_distance(embeddings, self.centers)
        statistic = sigreg(embeddings, config.slices, config.knots, generator=self.batch_generator(), group=world())
        loss = config.regularizer_weight * statistic + (1 - config.regularizer_weight) * distance
        return StepOutput(loss, {"view_distance": distance, "sigreg": statistic})
