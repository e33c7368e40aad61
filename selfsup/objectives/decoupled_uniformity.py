"""Decoupled uniformity: spread the centroids of the images' views; no positives, no negatives, no temperature.

Views that part shorten their centroid, and short centroids lie close to each other, so spreading them aligns the views
by the way. Weak labels may say which images are alike: centroids are then smoothed with a kernel over them. Dufumier et
al., "Integrating Prior Knowledge in Contrastive Learning with Kernel", 2023.

Deviations: the only prior is the label (a kernel that is 1 within a label); features of a generative model, which the
authors take too, go through ``selfsup.functional.decoupled_uniformity``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.distributed import world
from selfsup.functional import decoupled_uniformity
from selfsup.functional.collectives import gather
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class DecoupledUniformityConfig(ObjectiveConfig):
    """Its settings, with the authors' defaults.

    Attributes:
        t: Sharpness of the kernel between centroids.
        prior: ``none``, or ``labels``: images of one label are alike, those without one are like themselves alone.
        ridge: λ of the smoothing; the smaller, the more images of a label become one.
    """

    name: str = "decoupled_uniformity"
    t: float = setting(2.0, above=0)
    prior: str = setting("none", choices=("none", "labels"))
    ridge: float = setting(0.01, above=0)


@objectives.register("decoupled_uniformity", DecoupledUniformityConfig, over=("views",))
class DecoupledUniformity(Objective):
    """Spread the centroids of each image's views, smoothed over a label where there is a prior."""

    config: DecoupledUniformityConfig

    def __init__(self, config: DecoupledUniformityConfig, index: Tensor | None = None) -> None:
        super().__init__(config)
        self.needs_labels = config.prior == "labels"

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the decoupled uniformity, and log how well views agree: −mean ‖μ‖²."""
        kernel = None
        if self.needs_labels and embeddings.labels is not None:
            labels = gather(embeddings.labels, world())
            alike = (labels[:, None] == labels) & (labels[:, None] >= 0)
            kernel = (alike | torch.eye(len(labels), dtype=torch.bool, device=labels.device)).float()
        config = self.config
        loss = decoupled_uniformity(embeddings.views, config.t, kernel, config.ridge, world())
        centroid = F.normalize(embeddings.views.detach(), dim=-1).mean(0)
        return StepOutput(loss, {"alignment": -centroid.square().sum(1).mean()})
