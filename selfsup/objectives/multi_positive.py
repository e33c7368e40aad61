"""InfoNCE with several positives, SupCon's loss: any number of views, or all images of a label, attract each other.

The mean over an anchor's positives stands outside the logarithm, and all other embeddings of the batch stand in the
denominator. Without labels this is NT-Xent for more than two views. Khosla et al., "Supervised Contrastive Learning",
2020.

Deviations: the loss is averaged over the anchors where the paper's formula sums.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from selfsup.functional import pair_nce
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class MultiPositiveConfig(ObjectiveConfig):
    """Its settings, with the paper's defaults.

    Attributes:
        temperature: τ of the loss.
        labels: Count all images of an anchor's label among its positives, and not its own other views alone.
        anchors: ``all`` views are anchors, or the ``first`` alone (the authors' contrast mode).
        base_temperature: Multiplies the loss by τ over this value; None, as the paper's formula, does not. The authors'
            code has 0.07.
    """

    name: str = "multi_positive"
    temperature: float = setting(0.1, above=0)
    labels: bool = False
    anchors: str = setting("all", choices=("all", "first"))
    base_temperature: float | None = setting(None, above=0)


@objectives.register("multi_positive", MultiPositiveConfig, over=("views", "labels"))
class MultiPositive(Objective):
    """Attract all views of an image, or of its label, in one InfoNCE with several positives."""

    config: MultiPositiveConfig

    def __init__(self, config: MultiPositiveConfig, index: Tensor | None = None) -> None:
        super().__init__(config)
        self.needs_labels = config.labels

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the supervised contrastive loss."""
        temperature, base = self.config.temperature, self.config.base_temperature
        loss = pair_nce(embeddings.pairs(first_only=self.config.anchors == "first"), temperature)
        return StepOutput(loss if base is None else loss * (temperature / base))
