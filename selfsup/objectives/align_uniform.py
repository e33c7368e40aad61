"""Alignment and uniformity: the two properties that InfoNCE strives for, minimised as they are.

Views of an image lie close, and the embeddings of each view spread over the sphere by a Gaussian kernel. Wang and
Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere", 2020.

Deviations: none; more than two views are averaged over their pairs. With a queue the queries spread from it, as in the
authors' version of MoCo.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import align_uniform
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class AlignUniformConfig(ObjectiveConfig):
    """Its settings, with the authors' defaults.

    Attributes:
        alpha: Power of the distance between views.
        t: Sharpness of the kernel.
        align_weight, uniform_weight: Of the two terms.
    """

    name: str = "align_uniform"
    alpha: float = setting(2.0, above=0)
    t: float = setting(2.0, above=0)
    align_weight: float = setting(1.0, least=0)
    uniform_weight: float = setting(1.0, least=0)


@objectives.register("align_uniform", AlignUniformConfig, over=("views", "queue"))
class AlignUniform(Objective):
    """Draw views together and spread embeddings evenly, as two terms with weights."""

    config: AlignUniformConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the weighted sum of both terms, and log each."""
        config = self.config
        seen = embeddings.views, embeddings.queue, embeddings.mixed
        align, uniform = align_uniform(*seen, config.alpha, config.t, world())
        loss = config.align_weight * align + config.uniform_weight * uniform
        return StepOutput(loss, {"alignment": align, "uniformity": uniform})
