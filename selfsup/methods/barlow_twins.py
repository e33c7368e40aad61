"""Barlow Twins: the dimensions of two views' embeddings correlate with their counterparts and with nothing else.

The cross-correlation matrix of the two views, taken over the batch, is drawn to the identity: its diagonal makes views
agree, the rest removes redundancy and so prevents collapse. There are no negatives, no stop-gradient and no momentum
encoder; wide embeddings help. Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", 2021.

Each view passes the networks apart, with BatchNorm statistics of its own, as in the authors' code.

Deviations: with W ranks the authors' gradient is 1/W of the true one (their sum over ranks has no backward pass); here
it is exact. What their settings on 16 GPUs did, ours do by the settings that follow: LARS cancels the factor for the
weights that it adapts, next to which a decay of 1e-6 was one of 1.6e-5; biases and BatchNorm scales, which it does not
adapt, moved at 0.0048 / 16. The correlation divides by the images there are, theirs by the nominal batch. The
standardisation keeps no running statistics, which nothing reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfsup.distributed import world
from selfsup.functional import barlow_twins_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class BarlowTwinsConfig(MethodConfig):
    """Barlow Twins' settings, with the defaults of the authors' code.

    Attributes:
        redundancy_weight: λ of the terms off the diagonal.
        hidden_dim: Width of the head's hidden layers.
        output_dim: Width of the embedding.
        head_layers: Linear layers of the head.
        bias_lr_scale: Learning rate of biases and BatchNorm scales as a fraction of the weights'. The authors' is
            0.0048 of 0.2, for gradients that 16 GPUs divide by 16: 0.024 / 16.
    """

    name: str = "barlow_twins"
    redundancy_weight: float = setting(0.0051, least=0)
    hidden_dim: int = setting(8192, least=1)
    output_dim: int = setting(8192, least=1)
    head_layers: int = setting(3, least=1)
    bias_lr_scale: float = setting(0.0015, least=0)


@methods.register("barlow_twins", BarlowTwinsConfig, optimizer="barlow_twins", augment="byol")
class BarlowTwins(Method):
    """Draw the cross-correlation matrix of two views' embeddings to the identity (Barlow Twins)."""

    couples_images = True

    def __init__(self, config: BarlowTwinsConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.redundancy_weight, self.bias_lr_scale = config.redundancy_weight, config.bias_lr_scale
        hidden = [config.hidden_dim] * (config.head_layers - 1)
        self.head = projection_head([self.backbone.dim, *hidden, config.output_dim], bias=False, batch_norm=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the distance of the views' cross-correlation from the identity."""
        z1, z2 = (self.head(self.backbone(view.image)) for view in views)
        return StepOutput(barlow_twins_loss(z1, z2, self.redundancy_weight, group=world()))

    def param_groups(self) -> list[dict[str, Any]]:
        """Return weights, and biases and BatchNorm scales with a learning rate of their own."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        decay, exempt = self.optimizer_config.weight_decay, self.optimizer_config.exclude_1d
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
            {
                "params": [p for p in parameters if p.ndim <= 1],
                "weight_decay": 0.0 if exempt else decay,
                "adapt": not exempt,
                "lr_scale": self.bias_lr_scale,
            },
        ]
