"""All4One: NNCLR with several neighbours, mixed by self-attention, and a term against redundant features.

Three losses act at once. The nearest of the neighbours that a momentum encoder's projection finds among earlier images
contrasts with the prediction of the other view (NNCLR). A small transformer mixes the five nearest into one vector,
which contrasts with what it makes of the other view's second prediction and four neighbours: one comparison stands for
many. And the features of a projection are to correlate with themselves, and with no others, across the views. Estepa et
al., "All4One: Symbiotic Neighbour Contrastive Learning via Self-Attention and Redundancy Reduction", 2023.

Order within a step, as in solo-learn (9187ea3), where the authors have put their code: look the neighbours up in the
queue as it was, then enqueue the first view's momentum projections.

Deviations: the projector's last BatchNorm has a scale and no offset, as NNCLR's here. The features' correlations are
over the images of all ranks. The transformer learns at a tenth of the learning rate; solo-learn's rate is 0.1, which is
that at its batch of 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.functional import cross_view_nce, feature_loss, nearest_neighbors
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import FeatureQueue, MomentumEncoder, NeighborMixture, projection_head
from selfsup.optimization import cosine_schedule, decay_groups
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class All4OneConfig(MethodConfig):
    """All4One's settings, with solo-learn's defaults.

    Attributes:
        temperature: τ of the contrast with the nearest neighbour.
        mixture_temperature: τ of the contrast of mixtures.
        neighbors: Neighbours that are mixed.
        neighbor_weight, mixture_weight, feature_weight: Shares of the three losses.
        queue_size: Number of projections in which neighbours are looked for, at least one batch and ``neighbors``.
        momentum: Share of the old momentum encoder that the first step keeps; it rises to 1 along a cosine.
        hidden_dim: Width of the projector's two hidden layers.
        output_dim: Width of the projection, a multiple of ``heads``.
        predictor_dim: Width of the hidden layer of both predictors.
        layers, heads, dropout: Of the transformer.
        mixture_lr_scale: Factor on the transformer's learning rate.
    """

    name: str = "all4one"
    temperature: float = setting(0.2, above=0)
    mixture_temperature: float = setting(0.1, above=0)
    neighbors: int = setting(5, least=1)
    neighbor_weight: float = setting(0.5, least=0)
    mixture_weight: float = setting(0.5, least=0)
    feature_weight: float = setting(5.0, least=0)
    queue_size: int = setting(98304, least=1)
    momentum: float = setting(0.99, least=0, most=1)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(256, least=2)
    predictor_dim: int = setting(4096, least=1)
    layers: int = setting(3, least=1)
    heads: int = setting(8, least=1)
    dropout: float = setting(0.1, least=0, below=1)
    mixture_lr_scale: float = setting(0.1, least=0)


@methods.register("all4one", All4OneConfig, optimizer="lars", augment="byol")
class All4One(Method):
    """Contrast the nearest neighbour, and a mixture of several, with the other view; decorrelate features."""

    couples_images = True

    def __init__(self, config: All4OneConfig, parts: Parts) -> None:
        super().__init__(parts)
        _check(config, parts)
        self.config = config
        hidden, dim = config.hidden_dim, config.output_dim
        self.projector = projection_head([self.backbone.dim, hidden, hidden, dim], batch_norm=True, last_norm="scale")
        widths = [dim, config.predictor_dim, dim]
        self.predictor = projection_head(widths, batch_norm=True)
        self.mixed_predictor = projection_head(widths, batch_norm=True)
        self.mixture = NeighborMixture(dim, config.neighbors, config.layers, config.heads, config.dropout)
        self.target = MomentumEncoder(self.encoder)
        self.queue = FeatureQueue(config.queue_size, dim)

    @property
    def encoder(self) -> nn.Sequential:
        """Backbone and projector: what the target follows."""
        return nn.Sequential(self.backbone, self.projector)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return all parameters, those of the transformer with their own learning rate."""
        decay, exempt = self.optimizer_config.weight_decay, self.optimizer_config.exclude_1d
        rest = nn.ModuleList([module for name, module in self.named_children() if name != "mixture"])
        own, scale = decay_groups(self.mixture, decay, exempt), self.config.mixture_lr_scale
        return [*decay_groups(rest, decay, exempt), *({**group, "lr_scale": scale} for group in own)]

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the weighted sum of the three losses; a view has BatchNorm statistics of its own."""
        config, group = self.config, world()
        support = self.queue.negatives()
        projections = [self.encoder(view.image) for view in views]
        targets = [nn.functional.normalize(self.target(view.image), dim=1) for view in views]
        found = [nearest_neighbors(z, support, config.neighbors) for z in targets]
        mixed = [self.mixture(near) for near in found]
        shifted = [
            self.mixture(torch.cat([self.mixed_predictor(z)[:, None], near[:, :-1]], dim=1))
            for z, near in zip(projections, found, strict=True)
        ]
        nearest, mixtures = [], []
        for one, other in ((0, 1), (1, 0)):
            prediction = self.predictor(projections[other])
            nearest.append(cross_view_nce(found[one][:, 0], prediction, config.temperature, group))
            mixtures.append(cross_view_nce(mixed[one], shifted[other], config.mixture_temperature, group))
        features = feature_loss((projections[0], projections[1]), (targets[0], targets[1]), group)
        self.queue.enqueue(targets[0])
        neighbor, mixture = torch.stack(nearest).mean(), torch.stack(mixtures).mean()
        loss = config.neighbor_weight * neighbor + config.mixture_weight * mixture + config.feature_weight * features
        return StepOutput(loss, {"neighbor_loss": neighbor, "mixture_loss": mixture, "feature_loss": features})

    def after_optimizer_step(self) -> None:
        """Let the target follow."""
        self.target.update(self.encoder, cosine_schedule(self.config.momentum, 1.0, self.progress))


def _check(config: All4OneConfig, parts: Parts) -> None:
    if config.queue_size < max(parts.batch_size, config.neighbors):
        raise UserError(
            f"method.queue_size={config.queue_size} is smaller than the {parts.batch_size} images of a step, or the "
            f"{config.neighbors} neighbours that are looked for; raise it."
        )
    if config.output_dim % config.heads:
        raise UserError(
            f"method.heads={config.heads} does not divide method.output_dim={config.output_dim}; change one of them."
        )
