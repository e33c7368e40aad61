"""MV-InfoNCE: all views of an image in one term, against everything else of the batch.

The sum over all pairs of an image's views stands above the sum over all pairs that any of its views is in. Koromilas et
al., "A Principled Framework for Multi-View Contrastive Learning", 2025.

Deviations: the sums are those of the authors' code; the formula in their README leaves candidates of the anchor's own
view out.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import mv_info_nce
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class MVInfoNCEConfig(ObjectiveConfig):
    """Its setting.

    Attributes:
        temperature: τ of the loss.
    """

    name: str = "mv_infonce"
    temperature: float = setting(0.2, above=0)


@objectives.register("mv_infonce", MVInfoNCEConfig, over=("views",))
class MVInfoNCE(Objective):
    """Let all views of an image meet in one term of InfoNCE."""

    config: MVInfoNCEConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return MV-InfoNCE."""
        return StepOutput(mv_info_nce(embeddings.views, self.config.temperature, world()))
