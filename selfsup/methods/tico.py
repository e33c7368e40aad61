"""TiCo: views of an image agree, and embeddings avoid the directions that those of past batches took.

The second moment of unit embeddings is remembered as a moving average, and an embedding pays for its length along it:
contrast with a memory of all past batches that costs one D × D matrix. The other view comes from a momentum encoder.
Zhu et al., "TiCo: Transformation Invariance and Covariance Contrast for Self-Supervised Visual Representation
Learning", 2022.

No code of the authors is published and the paper's settings are not confirmed. ρ = 8 is what sayannag/TiCo-pytorch
(2259b83) calls the paper's recommendation, while its own default, lightly's and stable-pretraining's is 20. β, head and
momentum are those of that code; LARS as BYOL's is our choice.

Deviations: one of the two views is the query, as in that code. The momentum rises along a cosine, where it has a sine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.functional import tico_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import MomentumEncoder, projection_head
from selfsup.optimization import cosine_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class TiCoConfig(MethodConfig):
    """TiCo's settings; where they come from, the module says.

    Attributes:
        covariance_weight: ρ, of the length along the remembered second moment.
        memory: β, the share of the old second moment that a step keeps.
        momentum: Share of the old momentum encoder that the first step keeps; it rises to 1 along a cosine.
        hidden_dim: Width of the head's hidden layer.
        output_dim: Width of the embedding.
    """

    name: str = "tico"
    covariance_weight: float = setting(8.0, least=0)
    memory: float = setting(0.9, least=0, below=1)
    momentum: float = setting(0.99, least=0, most=1)
    hidden_dim: int = setting(4096, least=1)
    output_dim: int = setting(256, least=1)


@methods.register("tico", TiCoConfig, optimizer="lars", augment="byol")
class TiCo(Method):
    """Make two views agree and avoid the directions of past embeddings, by their remembered covariance (TiCo)."""

    couples_images = True

    def __init__(self, config: TiCoConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.config = config
        self.head = projection_head(
            [self.backbone.dim, config.hidden_dim, config.output_dim], bias=False, last_bias=True, batch_norm=True
        )
        self.target = MomentumEncoder(self.encoder)
        self.covariance: Tensor
        self.register_buffer("covariance", torch.zeros(config.output_dim, config.output_dim))

    @property
    def encoder(self) -> nn.Sequential:
        """Backbone and head: what the momentum encoder follows."""
        return nn.Sequential(self.backbone, self.head)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the sum of both terms, and remember the second moment."""
        query, key = self.encoder(views[0].image), self.target(views[1].image)
        config = self.config
        loss, covariance = tico_loss(
            query, key, self.covariance, config.memory, config.covariance_weight, group=world()
        )
        self.covariance.copy_(covariance)
        return StepOutput(loss)

    def after_optimizer_step(self) -> None:
        """Let the momentum encoder follow."""
        self.target.update(self.encoder, cosine_schedule(self.config.momentum, 1.0, self.progress))
