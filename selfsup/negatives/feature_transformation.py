"""Feature transformation: query and key are drawn apart, and the queue's keys mixed among themselves.

The positive pair is extrapolated along its own line, so that it is harder to recognise; negatives are interpolated with
each other, so that they fill the space between. Zhu et al., "Improving Contrastive Learning by Visualizing Feature
Transformation", 2021.

Deviations: everything is brought to length 1 after the mixing, where an option of the authors' code
(DTennant/CL-Visualizing-Feature-Transformation, 787e838) is overwritten by the positives' alone. Shares are drawn from
a table of the distribution's quantiles.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.negatives.base import Negatives, NegativesConfig, draw_own, draw_shared
from selfsup.objectives import Embeddings
from selfsup.registry import negatives
from selfsup.settings import setting


@dataclass
class FeatureTransformationConfig(NegativesConfig):
    """Its settings, with the authors' defaults.

    Attributes:
        positive_alpha: α of the Beta(α, α) that, plus 1, is the share by which query and key are drawn apart; None
            leaves them.
        negative_alpha: α of the Beta(α, α) that is the share of a key mixed with another; None leaves the queue.
        by_dimension: Draw a share for each dimension, and not one for each vector.
    """

    name: str = "feature_transformation"
    positive_alpha: float | None = setting(2.0, above=0)
    negative_alpha: float | None = setting(1.6, above=0)
    by_dimension: bool = True


@negatives.register("feature_transformation", FeatureTransformationConfig, also=("ft",), over=("queue",))
class FeatureTransformation(Negatives):
    """Draw query and key apart, and mix the queue's keys with each other."""

    config: FeatureTransformationConfig

    def forward(self, embeddings: Embeddings, generator: torch.Generator, epoch: int) -> Embeddings:
        """Return the embeddings with the pairs extrapolated and the queue interpolated."""
        config, queue = self.config, embeddings.queue
        assert queue is not None
        views = F.normalize(embeddings.views.float() if queue.dtype == torch.float32 else embeddings.views, dim=-1)
        if config.positive_alpha is not None:
            width = views.shape[-1] if config.by_dimension else 1
            share = 1 + beta_quantiles(draw_own((width,), views[0], generator), config.positive_alpha)
            query, key = views
            views = torch.stack([share * query + (1 - share) * key, share * key + (1 - share) * query])
        if config.negative_alpha is not None:
            numbers = draw_shared(queue if config.by_dimension else queue[:, :1], generator)
            share = beta_quantiles(numbers, config.negative_alpha).to(queue.dtype)
            order = torch.randperm(len(queue), generator=generator).to(queue.device)
            queue = F.normalize(share * queue + (1 - share) * queue[order], dim=1)
        return dataclasses.replace(embeddings, views=views, queue=queue)


def beta_quantiles(numbers: Tensor, alpha: float, points: int = 4096) -> Tensor:
    """Return Beta(α, α) variables for uniform numbers, by linear interpolation in a table of the distribution."""
    x = torch.linspace(0, 1, points + 1, dtype=torch.float64)
    middle = (x[1:] + x[:-1]) / 2
    mass = (middle * (1 - middle)).pow(alpha - 1)
    table = torch.cat([mass.new_zeros(1), mass.cumsum(0) / mass.sum()])
    table, x = table.to(numbers), x.to(numbers)
    right = torch.searchsorted(table, numbers.contiguous()).clamp(1, points)
    low, high = table[right - 1], table[right]
    along = (numbers - low) / (high - low).clamp_min(torch.finfo(numbers.dtype).tiny)
    return x[right - 1] + along.clamp(0, 1) * (x[right] - x[right - 1])
