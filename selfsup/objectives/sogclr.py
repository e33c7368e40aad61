"""SogCLR: remember of every image how crowded its surroundings are, so that a small batch learns as a large one.

InfoNCE's denominator is an estimate from one batch, and its logarithm is biased the more the smaller that is. SogCLR
keeps a moving average of the denominator for every image and weighs the batch's negatives by it. Yuan et al., "Provable
Stochastic Optimization for Global Contrastive Learning: Small Batch Does Not Harm Performance", 2022.

Deviations: an image that is seen first takes the batch's own value, where the authors' library asks that of the whole
batch. The averages are kept as logarithms, and there is no schedule of their rate. The loss is averaged over the views,
where the library adds them; as there, its gradient is τ times that of InfoNCE, which matters for plain SGD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.functional import global_contrastive, log_mean_exp_negatives
from selfsup.nn import ImageNumbers
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class SogCLRConfig(ObjectiveConfig):
    """SogCLR's settings, with the defaults of the authors' library.

    Attributes:
        temperature: τ of the loss.
        rate: γ, the share of the present batch in an image's average; 1 keeps nothing and is DCL but for the scale.
    """

    name: str = "sogclr"
    temperature: float = setting(0.1, above=0)
    rate: float = setting(0.9, above=0, most=1)


@objectives.register("sogclr", SogCLRConfig, over=("views",))
class SogCLR(Objective):
    """Keep a moving average of each image's denominator; for small batches."""

    needs_index = True
    config: SogCLRConfig

    def __init__(self, config: SogCLRConfig, index: Tensor | None = None) -> None:
        super().__init__(config)
        self.memory = ImageNumbers(index, -torch.inf)  # log u; nothing has been seen

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the global contrastive loss, and keep the new averages."""
        pairs, rows = embeddings.pairs(), self.memory.rows(embeddings.index)
        views = embeddings.views.shape[:2]
        with torch.no_grad():
            now = log_mean_exp_negatives(pairs, self.config.temperature).view(views)
            log_u = follow(self.memory.read(rows)[0], now, self.config.rate)
            self.memory.write(rows, log_mean(log_u)[None])
        return StepOutput(global_contrastive(pairs, self.config.temperature, log_u.flatten()))


def follow(before: Tensor, now: Tensor, rate: float) -> Tensor:
    """Return the logarithm of a moving average ``[V,N]``: of what was kept ``[N]`` (−inf: nothing) and what is now."""
    if rate == 1:
        return now
    moved = torch.logaddexp(before.to(now.dtype) + math.log1p(-rate), now + math.log(rate))
    return torch.where(before.isneginf(), now, moved)


def log_mean(values: Tensor) -> Tensor:
    """Return the logarithm of the mean over the views ``[V,N]`` of what these are the logarithms of."""
    return values.logsumexp(0) - math.log(len(values))
