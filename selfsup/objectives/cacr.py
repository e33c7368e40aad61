"""CACR: positives that are far attract more, negatives that are near repel more, each weighed among themselves.

There is no softmax of positives against negatives: an anchor's positives share one, its negatives another. It wants
several positives, so several views. Zheng et al., "Contrastive Attraction and Contrastive Repulsion for Representation
Learning", 2021.

Deviations: negatives are those of the other views together, where the authors take one pair of views at a time; with
two views this is the same. Neither their kernel form nor their debiased one is here, nor that for MoCo v3.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.functional import attraction_repulsion
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class CACRConfig(ObjectiveConfig):
    """CACR's settings, with the authors' defaults for CIFAR-10.

    Attributes:
        attraction, repulsion: α and β, weights of the two terms.
        positive_temperature: τ⁺, how much more far positives weigh.
        negative_temperature: τ⁻, how much more near negatives weigh; 2 for CIFAR-100 and STL-10.
        through_weights: Let gradients flow through the weights of the positives too; the authors' code for ImageNet
            does not.
    """

    name: str = "cacr"
    attraction: float = setting(1.0, least=0)
    repulsion: float = setting(1.0, least=0)
    positive_temperature: float = setting(1.0, above=0)
    negative_temperature: float = setting(0.9, above=0)
    through_weights: bool = True


@objectives.register("cacr", CACRConfig, over=("views", "queue"))
class CACR(Objective):
    """Weigh positives by how far, and negatives by how near they are, without one softmax over both."""

    config: CACRConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return attraction and repulsion."""
        c = self.config
        weights = (c.attraction, c.repulsion, c.positive_temperature, c.negative_temperature)
        return StepOutput(attraction_repulsion(embeddings.pairs(across=True), *weights, c.through_weights))
