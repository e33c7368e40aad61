"""Debiased contrast: InfoNCE corrected for the negatives that are of the anchor's own class.

Among random negatives a known share is of the same class. What they contribute on average is estimated from the
positives and taken off. Chuang et al., "Debiased Contrastive Learning", 2020.

Deviations: none; several positives each stand alone against the corrected negatives, and are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.functional import debiased_contrastive
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class DebiasedConfig(ObjectiveConfig):
    """Its settings, with the authors' defaults.

    Attributes:
        temperature: τ of the loss.
        prior: τ⁺, the probability that a negative is of the anchor's class, about 1 over the number of classes. 0 is
            InfoNCE.
    """

    name: str = "debiased"
    temperature: float = setting(0.5, above=0)
    prior: float = setting(0.1, least=0, below=1)


@objectives.register("debiased", DebiasedConfig, over=("views", "queue"))
class Debiased(Objective):
    """Take off what negatives of the anchor's own class add to InfoNCE; for data of few classes."""

    config: DebiasedConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the debiased contrastive loss."""
        return StepOutput(debiased_contrastive(embeddings.pairs(), self.config.temperature, self.config.prior))
