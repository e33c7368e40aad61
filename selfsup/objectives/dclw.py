"""DCLW: DCL whose positive pairs weigh less the closer they lie.

A pair's weight is 2 less a softmax of its similarity over all positive pairs, so that weights average 1 and pairs that
are far apart count more. Yeh et al., "Decoupled Contrastive Learning", 2022.

Deviations: as of DCL. Gradients flow through the weights, as in the public implementations; the paper does not say.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import decoupled_contrastive
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class DCLWConfig(ObjectiveConfig):
    """DCLW's settings, with the paper's defaults.

    Attributes:
        temperature: τ of the loss.
        sigma: σ of the weights; the smaller, the more pairs that are close lose.
    """

    name: str = "dclw"
    temperature: float = setting(0.1, above=0)
    sigma: float = setting(0.5, above=0)


@objectives.register("dclw", DCLWConfig, over=("views", "labels", "queue"))
class DCLW(Objective):
    """Weigh DCL's positive pairs by how far apart they are."""

    config: DCLWConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the weighted decoupled contrastive loss."""
        temperature, sigma = self.config.temperature, self.config.sigma
        return StepOutput(decoupled_contrastive(embeddings.pairs(), temperature, sigma, world()))
