"""MV-DHEL: all views of an image attract in one term, and every view spreads among the images by itself.

Attraction and spread share no softmax, so more views make neither weaker. Koromilas et al., "A Principled Framework for
Multi-View Contrastive Learning", 2025.

Deviations: none; the product over the views is taken as a sum of logarithms, where the authors' overflows.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import mv_dhel
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class MVDHELConfig(ObjectiveConfig):
    """Its setting, with the authors' default.

    Attributes:
        temperature: τ of the loss.
    """

    name: str = "mv_dhel"
    temperature: float = setting(0.2, above=0)


@objectives.register("mv_dhel", MVDHELConfig, over=("views",))
class MVDHEL(Objective):
    """Attract all views of an image at once and spread each view by itself; for more than two views."""

    config: MVDHELConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return MV-DHEL."""
        return StepOutput(mv_dhel(embeddings.views, self.config.temperature, world()))
