"""SMoG: predict the group that the other view belongs to, among groups that move with the embeddings.

Groups are unit vectors. In every step each first moves a little towards the mean of the embeddings of one view that are
nearest to it; a predictor of that view then names, among the groups so moved, the one that a momentum encoder puts the
other view into. The gradient flows through the move, too: grouping and learning are synchronous, where clustering once
an epoch lags behind. Pang et al., "Unsupervised Visual Representation Learning by Synchronous Momentum Grouping", 2022.

Now and then groups are made anew, by k-means of the latest embeddings, and the momentum encoder becomes a copy of the
network. The views take turns, step by step, in which of the two is predicted from.

The authors have published no code; the form is lightly's (e8d317f), and settings are not checked against the paper.

Deviations from lightly: embeddings have length 1 before they move a group, and groups afterwards; k-means is spherical.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.functional import group_prediction, momentum_groups, spherical_lloyd
from selfsup.functional.arguments import trusted_values
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import FeatureQueue, MomentumEncoder, projection_head
from selfsup.random import fold_in
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class SMoGConfig(MethodConfig):
    """SMoG's settings, as lightly reads the paper.

    Attributes:
        temperature: τ of the predictions.
        groups: Number of groups, at most ``queue_size``.
        group_momentum: β, the share of itself that a group keeps.
        momentum: Share of the old momentum encoder that a step keeps.
        reset_steps: Steps after which groups and momentum encoder are made anew; 0 is never.
        queue_size: Latest embeddings that groups are made of, at least one batch.
        hidden_dim: Width of the hidden layer of projector and predictor.
        output_dim: Width of the embedding.
    """

    name: str = "smog"
    temperature: float = setting(0.1, above=0)
    groups: int = setting(3000, least=2)
    group_momentum: float = setting(0.99, least=0, most=1)
    momentum: float = setting(0.99, least=0, most=1)
    reset_steps: int = setting(300, least=0)
    queue_size: int = setting(65536, least=1)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(128, least=1)


@methods.register("smog", SMoGConfig, optimizer="lars", augment="byol")
class SMoG(Method):
    """Predict the group of the other view, among groups that move with the embeddings."""

    couples_images = True

    def __init__(self, config: SMoGConfig, parts: Parts) -> None:
        super().__init__(parts)
        need, why = max((parts.batch_size, "images of a step"), (config.groups, "groups"))
        if config.reset_steps and config.queue_size < need:
            raise UserError(
                f"method.queue_size={config.queue_size} is smaller than the {need} {why}; raise it, or lower them."
            )
        self.config = config
        hidden, dim = config.hidden_dim, config.output_dim
        self.projector = projection_head(
            [self.backbone.dim, hidden, dim], batch_norm=True, bias=False, last_norm="fixed"
        )
        self.predictor = projection_head([dim, hidden, dim], batch_norm=True, bias=False, last_bias=True)
        self.target = MomentumEncoder(self.encoder)
        self.groups: Tensor
        self.register_buffer("groups", F.normalize(torch.randn(config.groups, dim), dim=1))
        self.queue = FeatureQueue(config.queue_size, dim) if config.reset_steps else None

    @property
    def encoder(self) -> nn.Sequential:
        """Backbone and projector: what the momentum encoder follows."""
        return nn.Sequential(self.backbone, self.projector)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the prediction among the moved groups, which then are the groups."""
        ours, other = views if self.steps_done % 2 == 0 else reversed(views)
        embedding = self.encoder(ours.image)
        prediction = self.predictor(embedding)
        target = self.target(other.image).to(self.groups.dtype) @ self.groups.T
        moved = momentum_groups(embedding, self.groups, self.config.group_momentum, world())
        loss = group_prediction(prediction, moved, target, self.config.temperature)
        self.groups.copy_(moved.detach())
        if self.queue is not None:
            self.queue.enqueue(embedding.detach())
        return StepOutput(loss)

    def after_optimizer_step(self) -> None:
        """Let the momentum encoder follow, or make it and the groups anew."""
        done = self.steps_done + 1
        if self.queue is None or done % self.config.reset_steps:
            self.target.update(self.encoder, self.config.momentum)
            return
        self.target.update(self.encoder, 0.0)
        stored = self.queue.negatives()[: done * self.batch_size]  # what the queue began with does not count
        if len(stored) >= self.config.groups:
            generator = torch.Generator().manual_seed(fold_in(self.seed, done))
            start = torch.randperm(len(stored), generator=generator)[: self.config.groups].to(stored.device)
            with trusted_values():  # what is not finite shows in the next loss, without waiting for the device here
                self.groups.copy_(spherical_lloyd(stored, stored[start])[0])
