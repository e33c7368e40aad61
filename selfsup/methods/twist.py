"""TWIST: two views are classified alike, each image surely, and all images evenly over the classes.

The head ends in a softmax over classes that nobody has named. Twin distributions agree (symmetric KL), each is sharp
(low entropy), and their mean over the batch is even (high entropy); the batch normalisation before the softmax, without
scale and offset, keeps the three from cancelling at the start. Wang et al., "Self-Supervised Learning by Estimating
Twin Class Distributions", 2021.

Defaults are those of the authors' code (bytedance/TWIST, 1283a55). Their best figures add many crops and a second phase
of self-labelling, which are not here: this is their model without, of two crops.

Deviations: no 1e-5 inside the logarithms, which log-softmax does not need.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import twist_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class TWISTConfig(MethodConfig):
    """TWIST's settings, with the defaults of the authors' code.

    Attributes:
        temperature: τ of the distributions whose entropies count.
        evenness_weight: λ, of the entropy of the mean distribution.
        hidden_dim: Width of the head's two hidden layers.
        classes: Number of classes.
    """

    name: str = "twist"
    temperature: float = setting(1.0, above=0)
    evenness_weight: float = setting(1.0, least=0)
    hidden_dim: int = setting(4096, least=1)
    classes: int = setting(4096, least=2)


@methods.register("twist", TWISTConfig, optimizer="twist", augment="byol")
class TWIST(Method):
    """Classify two views alike, each image surely and all images evenly (TWIST)."""

    couples_images = True

    def __init__(self, config: TWISTConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.config = config
        dims = [self.backbone.dim, config.hidden_dim, config.hidden_dim, config.classes]
        # the normalisation takes a bias of the last layer away, which would get no gradient
        self.head = projection_head(dims, last_bias=False, batch_norm=True, last_norm="fixed")

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return agreement, sharpness and evenness of the twin distributions."""
        logits1, logits2 = self.head(self.encode(views).flatten(0, 1)).chunk(2)
        config = self.config
        return StepOutput(twist_loss(logits1, logits2, config.temperature, config.evenness_weight, group=world()))
