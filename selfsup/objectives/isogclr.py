"""iSogCLR: SogCLR with a temperature of its own for every image, learned by the way.

Images of common things have many like them and want a high temperature, rare ones a low one. Each image's temperature
follows the gradient of a robust form of the loss, with a momentum. Qiu et al., "Not All Semantics are Created Equal:
Contrastive Self-supervised Learning with Automatic Temperature Individualization", 2023.

Deviations: as of SogCLR. The defaults are those of the authors' library; their first code has γ 0.8, ρ 6 and η 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.functional import global_contrastive, log_mean_exp_negatives
from selfsup.nn import ImageNumbers
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.objectives.sogclr import follow, log_mean
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class ISogCLRConfig(ObjectiveConfig):
    """iSogCLR's settings, with the defaults of the authors' library.

    Attributes:
        temperature: τ of every image at first.
        rate: γ, the share of the present batch in an image's average.
        rho: ρ; the larger, the lower the temperatures.
        step: η, how far a temperature moves in a step.
        momentum: β, the share of the present batch in the gradient that it moves by.
        least, most: Bounds of the temperatures.
    """

    name: str = "isogclr"
    temperature: float = setting(0.1, above=0)
    rate: float = setting(0.9, above=0, most=1)
    rho: float = 0.3
    step: float = setting(0.01, least=0)
    momentum: float = setting(0.9, above=0, most=1)
    least: float = setting(0.05, above=0)
    most: float = setting(0.7, above=0)


@objectives.register("isogclr", ISogCLRConfig, over=("views",))
class ISogCLR(Objective):
    """Learn a temperature for every image beside its average denominator; for uneven classes."""

    needs_index = True
    config: ISogCLRConfig

    def __init__(self, config: ISogCLRConfig, index: Tensor | None = None) -> None:
        super().__init__(config)
        if config.least > config.most:
            raise UserError(f"objective.least={config.least} is above objective.most={config.most}; lower it.")
        self.memory = ImageNumbers(index, -torch.inf, config.temperature, 0.0)  # log u, τ and the gradient of τ

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return the global contrastive loss, keep the new averages and move the temperatures, whose mean is logged."""
        config, pairs, rows = self.config, embeddings.pairs(), self.memory.rows(embeddings.index)
        views = embeddings.views.shape[:2]
        with torch.no_grad():
            before, temperature, slope = self.memory.read(rows).to(pairs.similarity.dtype)
            each = temperature.repeat(views[0])[:, None]
            now = log_mean_exp_negatives(pairs, each).view(views)
            log_u = follow(before, now, config.rate)
            logits = pairs.similarity / each
            weight = torch.where(pairs.negative, logits - log_u.flatten()[:, None], -torch.inf).exp()
            entropy = (weight * logits).sum(1) / pairs.negative.sum(1)
            gradient = (log_u + config.rho - entropy.view(views)).mean(0)
            slope = (1 - config.momentum) * slope + config.momentum * gradient
            moved = (temperature - config.step * slope).clamp(config.least, config.most)
            self.memory.write(rows, torch.stack([log_mean(log_u), moved, slope]))
        loss = global_contrastive(pairs, each, log_u.flatten())
        return StepOutput(loss, {"temperature": temperature.mean()})
