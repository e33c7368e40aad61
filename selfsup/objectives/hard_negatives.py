"""Hard negatives: debiased contrast whose negatives weigh more the nearer they are.

Each negative weighs by a power of its own exponential similarity, which amounts to drawing hard ones more often, at no
cost. Robinson et al., "Contrastive Learning with Hard Negative Samples", 2021.

Deviations: none. Gradients flow through the weights, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.functional import debiased_contrastive
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class HardNegativesConfig(ObjectiveConfig):
    """Its settings, with the defaults of the authors' code.

    Attributes:
        temperature: τ of the loss.
        prior: τ⁺, the probability that a negative is of the anchor's class.
        concentration: β, how much more near negatives weigh; 0 is the debiased objective.
    """

    name: str = "hard_negatives"
    temperature: float = setting(0.5, above=0)
    prior: float = setting(0.1, least=0, below=1)
    concentration: float = setting(1.0, least=0)


@objectives.register("hard_negatives", HardNegativesConfig, over=("views", "queue"), also=("hcl",))
class HardNegatives(Objective):
    """Let near negatives weigh more, and correct for those of the anchor's own class."""

    config: HardNegativesConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the debiased contrastive loss with hard negatives."""
        config = self.config
        return StepOutput(
            debiased_contrastive(embeddings.pairs(), config.temperature, config.prior, config.concentration)
        )
