"""MoCo v3: each view predicts the momentum encoder's key of the other view among the keys of the batch.

There is no queue: the negatives are the keys of the other images of a large batch. A predictor follows the projector on
the query side only, and the loss takes both directions. Chen et al., "An Empirical Study of Training Self-Supervised
Vision Transformers", 2021, which also freezes the random patch embedding of a vision transformer to keep its training
stable.

Deviations: the momentum update follows the optimiser step instead of coming before the next key pass, with the schedule
read one step earlier. Vision transformers are timm's, and so is their initialisation; positions are learned unless
``backbone.fixed_positions=true`` fixes sines and cosines, as the authors do and the preset says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from selfsup.distributed import world
from selfsup.functional import cross_view_nce
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import MomentumEncoder, projection_head
from selfsup.optimization import cosine_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View

#: Layers of the projector, and whether the predictor ends in BatchNorm.
HEADS = {"resnet": (2, False), "vit": (3, True)}


@dataclass
class MoCoV3Config(MethodConfig):
    """MoCo v3's settings, with the authors' defaults for a ResNet-50 and 100 epochs.

    Attributes:
        temperature: τ of the loss; the authors take 0.2 for vision transformers.
        momentum: Share of the old key encoder that a step keeps at first; it rises to 1 along a cosine.
        head: ``resnet``, a projector of two layers, or ``vit``, one of three and a predictor that ends in BatchNorm;
            None goes by the backbone.
        hidden_dim: Width of the hidden layers of projector and predictor.
        output_dim: Width of query and key.
        freeze_patch_embed: Leave the patch embedding of a vision transformer as it was drawn.
    """

    name: str = "moco_v3"
    temperature: float = setting(1.0, above=0)
    momentum: float = setting(0.99, least=0, most=1)
    head: str | None = setting(None, choices=tuple(HEADS))
    hidden_dim: int = setting(4096, least=1)
    output_dim: int = setting(256, least=1)
    freeze_patch_embed: bool = True


@methods.register("moco_v3", MoCoV3Config, optimizer="lars", augment="byol")
class MoCoV3(Method):
    """Predict the momentum encoder's key of the other view among the keys of the batch."""

    couples_images = True

    def __init__(self, config: MoCoV3Config, parts: Parts) -> None:
        super().__init__(parts)
        patch_embed = getattr(self.backbone.network, "patch_embed", None)
        head = config.head or ("resnet" if patch_embed is None else "vit")
        self.temperature, self.momentum = config.temperature, config.momentum
        if config.freeze_patch_embed and isinstance(patch_embed, nn.Module):
            patch_embed.requires_grad_(False)
        layers, predictor_norm = HEADS[head]
        hidden, dim = config.hidden_dim, config.output_dim
        self.projector = projection_head(
            [self.backbone.dim, *[hidden] * (layers - 1), dim], bias=False, batch_norm=True, last_norm="fixed"
        )
        self.predictor = projection_head(
            [dim, hidden, dim], bias=False, batch_norm=True, last_norm="fixed" if predictor_norm else "none"
        )
        self.key_encoder = MomentumEncoder(nn.Sequential(self.backbone, self.projector))

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return 2τ times the sum of both directions' losses; a view has BatchNorm statistics of its own."""
        queries = [self.predictor(self.projector(self.backbone(view.image))) for view in views]
        keys = [self.key_encoder(view.image) for view in views]
        directions = [
            cross_view_nce(query, key, self.temperature, world())
            for query, key in zip(queries, reversed(keys), strict=True)
        ]
        return StepOutput(2 * self.temperature * torch.stack(directions).sum())

    def after_optimizer_step(self) -> None:
        """Let the key encoder follow."""
        momentum = cosine_schedule(self.momentum, 1.0, self.progress)
        self.key_encoder.update(nn.Sequential(self.backbone, self.projector), momentum)
