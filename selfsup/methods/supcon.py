"""SupCon: all images of a class attract each other, the images of all other classes repel.

The views go through the backbone and a projection head, as in SimCLR; the supervised contrastive loss has every view of
every image of the anchor's label among its positives. An image whose label is missing has only its own other views, so
a partly labelled set trains too. Khosla et al., "Supervised Contrastive Learning", 2020.

Deviations: the loss is averaged over the anchors where the paper's formula sums. The head is that of the authors'
PyTorch code; their TensorFlow code, which the paper's ImageNet results come from, normalises the feature before it and
trains with AutoAugment, which is not among the recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfsup.distributed import world
from selfsup.functional import supervised_contrastive
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class SupConConfig(MethodConfig):
    """SupCon's settings, with the paper's defaults.

    Attributes:
        temperature: τ of the loss.
        base_temperature: Multiplies the loss by τ over this value; None, as the paper's formula, does not. The authors'
            PyTorch code has 0.07 and their TensorFlow code 1. The factor acts like one on the learning rate, except
            under optimisers that adapt to the size of the gradient.
        hidden_dim: Width of the head's hidden layer; None is the width of the backbone's feature.
        output_dim: Width of the embedding.
    """

    of_loss: ClassVar[tuple[str, ...]] = ("temperature", "base_temperature")

    name: str = "supcon"
    temperature: float = setting(0.1, above=0)
    base_temperature: float | None = setting(None, above=0)
    hidden_dim: int | None = setting(None, least=1)
    output_dim: int = setting(128, least=1)


@methods.register("supcon", SupConConfig, optimizer="lars", augment="simclr", over=("labels",))
class SupCon(Method):
    """Contrast the images of each label with those of all other labels of the batch; learns from labels."""

    view_count = (2, None)
    needs_labels = True
    couples_images = True

    def __init__(self, config: SupConConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.temperature, self.base_temperature = config.temperature, config.base_temperature
        dim = self.backbone.dim
        self.head = projection_head([dim, config.hidden_dim or dim, config.output_dim])

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the supervised contrastive loss of all views, or the objective."""
        if batch.label is None:
            raise ValueError("SupCon needs a batch with labels")
        z = self.head(self.encode(views).flatten(0, 1)).unflatten(0, (len(views), -1))
        if self.objective is not None:
            return self.apply_objective(z, batch)
        return StepOutput(
            supervised_contrastive(z, batch.label, self.temperature, self.base_temperature, group=world())
        )
