"""Poly-view contrast: every pair of an image's views is a task of its own against the other images.

Other views of the anchor's image do not stand in the denominator. Their terms are averaged as logarithms (geometric) or
before the logarithm (arithmetic). Shidani et al., "Poly-View Contrastive Learning", 2024.

Deviations: the paper's third form, sufficient statistics, is not here. No authors' code was found; the formula is the
sheet's, and not that of a public copy whose arithmetic branch differs from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.functional import poly_view_loss
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class PolyViewConfig(ObjectiveConfig):
    """Its settings.

    Attributes:
        temperature: τ of the loss.
        mean: ``geometric`` or ``arithmetic``, over the other views of an image.
    """

    name: str = "poly_view"
    temperature: float = setting(0.1, above=0)
    mean: str = setting("geometric", choices=("geometric", "arithmetic"))


@objectives.register("poly_view", PolyViewConfig, over=("views",))
class PolyView(Objective):
    """Contrast every pair of views by itself; for more than two views of an image."""

    config: PolyViewConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the poly-view loss."""
        arithmetic = self.config.mean == "arithmetic"
        return StepOutput(poly_view_loss(embeddings.pairs(), self.config.temperature, arithmetic))
