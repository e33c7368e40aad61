"""SimCLR: two views of an image attract, all other images of the batch repel.

Both views go through the backbone and a projection head; NT-Xent contrasts each embedding with all others of the
batch. The head is thrown away after training. Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", 2020, and "Big Self-Supervised Models are Strong Semi-Supervised Learners", 2020.

Deviations: the loss is the mean over the anchors, as in the papers; the authors' TensorFlow code minimises twice that,
which ``sum_views`` does too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfsup.distributed import world
from selfsup.functional import nt_xent
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class SimCLRConfig(MethodConfig):
    """SimCLR's settings, with the defaults of the authors' code (SimCLR v2).

    Attributes:
        temperature: τ of the loss.
        hidden_dim: Width of the head's hidden layers; None is the width of the backbone's feature.
        output_dim: Width of the embedding.
        head_layers: Linear layers of the head; the first paper and its CIFAR runs have 2.
        sum_views: Add the mean losses of the two views, twice the mean over all anchors, as the authors' code does. At
            the same settings decay then weighs half as much beside the gradient, and what LARS does not adapt (biases
            and BatchNorm scales) moves twice as fast.
    """

    of_loss: ClassVar[tuple[str, ...]] = ("temperature", "sum_views")

    name: str = "simclr"
    temperature: float = setting(0.1, above=0)
    hidden_dim: int | None = setting(None, least=1)
    output_dim: int = setting(128, least=1)
    head_layers: int = setting(3, least=1)
    sum_views: bool = False


@methods.register("simclr", SimCLRConfig, optimizer="lars", augment="simclr", over=("views",))
class SimCLR(Method):
    """Contrast two views of each image with all other images of the batch (NT-Xent)."""

    couples_images = True

    def __init__(self, config: SimCLRConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.temperature, self.factor = config.temperature, 2 if config.sum_views else 1
        dim = self.backbone.dim
        hidden = [config.hidden_dim or dim] * (config.head_layers - 1)
        self.head = projection_head([dim, *hidden, config.output_dim], bias=False, batch_norm=True, last_norm="scale")

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return NT-Xent of the two views, or the objective of all of them."""
        z = self.head(self.encode(views).flatten(0, 1))
        if self.objective is not None:
            return self.apply_objective(z.unflatten(0, (len(views), -1)), batch)
        z1, z2 = z.chunk(2)
        return StepOutput(self.factor * nt_xent(z1, z2, self.temperature, group=world()))
