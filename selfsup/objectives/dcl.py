"""DCL: InfoNCE without the positive in the denominator, so that small batches learn as well.

In InfoNCE the positive stands in the denominator too, and an easy positive shrinks the gradient of the whole term, the
more so the fewer negatives there are. DCL leaves it out. Yeh et al., "Decoupled Contrastive Learning", 2022.

Deviations: none; with labels, or more than two views, all positives are left out and their mean attracts. The loss is
averaged over the anchors of all views, where the formula adds the two directions.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.functional import decoupled_contrastive
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class DCLConfig(ObjectiveConfig):
    """DCL's setting, with the paper's default.

    Attributes:
        temperature: τ of the loss.
    """

    name: str = "dcl"
    temperature: float = setting(0.1, above=0)


@objectives.register("dcl", DCLConfig, over=("views", "labels", "queue"))
class DCL(Objective):
    """Leave the positive out of InfoNCE's denominator; for small batches."""

    config: DCLConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the decoupled contrastive loss."""
        return StepOutput(decoupled_contrastive(embeddings.pairs(), self.config.temperature))
