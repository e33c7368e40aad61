"""VISReg: views of an image meet, and centre, scale and shape of the cloud are held apart from each other.

It is LeJEPA with the test of normality taken to pieces: the mean goes to 0, the standard deviation of every dimension
to 1, and the shape, of what is so standardised, to the normal by sorted projections on random lines (the sliced
2-Wasserstein distance). The term of the scale pulls a collapsed cloud apart with a force that does not vanish, which
the characteristic functions of SIGReg lack.

Known from stable-pretraining (commit 9aa93f8), whose weight and number of lines are the defaults; we have read no
paper. Head and views are LeJEPA's.

Deviations: all ranks draw the same lines and share them out, where each drew its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import centroid_distance, visreg
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class VISRegConfig(MethodConfig):
    """VISReg's settings, with the defaults of stable-pretraining.

    Attributes:
        regularizer_weight: λ, of centre, scale and shape; the distance between views has 1 - λ.
        slices: Random lines in each step.
        hidden_dim: Width of the head's hidden layers.
        output_dim: Width of the embedding.
        head_layers: Linear layers of the head.
    """

    name: str = "visreg"
    regularizer_weight: float = setting(0.9, least=0, most=1)
    slices: int = setting(4096, least=1)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(128, least=1)
    head_layers: int = setting(3, least=1)


@methods.register("visreg", VISRegConfig, optimizer="lejepa", augment="lejepa")
class VISReg(Method):
    """Bring any number of views together while centre, scale and shape of their cloud become a standard normal's."""

    view_count = (2, None)
    couples_images = True

    def __init__(self, config: VISRegConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.config = config
        self.centers = parts.views.sizes.count(parts.views.sizes[0])
        hidden = [config.hidden_dim] * (config.head_layers - 1)
        self.head = projection_head([self.backbone.dim, *hidden, config.output_dim], batch_norm=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the weighted sum of the distance to the large views' mean and of the three terms of the cloud."""
        weight = self.config.regularizer_weight
        embeddings = self.head(self.encode(views).flatten(0, 1)).unflatten(0, (len(views), -1))
        distance = centroid_distance(embeddings, self.centers)
        penalty = visreg(embeddings, self.config.slices, self.batch_generator(), group=world())
        return StepOutput(
            weight * penalty + (1 - weight) * distance, {"view_distance": distance, "regularizer": penalty}
        )
