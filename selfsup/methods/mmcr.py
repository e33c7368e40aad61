"""MMCR: the mean embedding of each image is long, and the means of all images fill as many directions as they can.

Views are put on the sphere and averaged for each image; the loss is minus the sum of the singular values of the matrix
of averages. An average is long only if its views agree, and the sum is large only if averages point in many directions,
so one term both attracts and repels. Yerxa et al., "Learning Efficient Coding of Natural Images with Maximum Manifold
Capacity Representations", 2023.

Defaults are those of the authors' code for ImageNet (ThomasYerxa/mmcr, 287db45): averages are of the network's and of a
momentum encoder's embeddings of all views. Their code for CIFAR has no momentum encoder, a head of 512 and 128, and 40
views of 32 images (``momentum_encoder=false``, ``augment.counts=[40]``).

Deviations: the gradient is that of one process with all images. The authors' gather keeps a rank's own part of it and
averages over ranks, which makes it smaller by their number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.functional import mmcr_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import MomentumEncoder, projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class MMCRConfig(MethodConfig):
    """MMCR's settings, with the defaults of the authors' code for ImageNet.

    Attributes:
        local_weight: λ, of the singular values of each image's own views; 0 leaves them out.
        momentum_encoder: Whether averages are of a momentum encoder's embeddings too.
        momentum: Share of the old momentum encoder that a step keeps.
        hidden_dim: Width of the head's hidden layers.
        output_dim: Width of the embedding.
        head_layers: Linear layers of the head.
    """

    name: str = "mmcr"
    local_weight: float = setting(0.0, least=0)
    momentum_encoder: bool = True
    momentum: float = setting(0.99, least=0, most=1)
    hidden_dim: int = setting(8192, least=1)
    output_dim: int = setting(512, least=1)
    head_layers: int = setting(3, least=1)


@methods.register("mmcr", MMCRConfig, optimizer="barlow_twins", augment="byol")
class MMCR(Method):
    """Maximise the nuclear norm of the mean embeddings of two or more views (MMCR)."""

    view_count = (2, None)
    couples_images = True

    def __init__(self, config: MMCRConfig, parts: Parts) -> None:
        super().__init__(parts)
        if len(set(parts.views.sizes)) > 1:
            raise UserError("MMCR averages views of one size; give augment.sizes and augment.counts one entry.")
        self.config = config
        dims = [self.backbone.dim, *[config.hidden_dim] * (config.head_layers - 1), config.output_dim]
        self.head = projection_head(dims, bias=False, batch_norm=True)
        self.target = nn.ModuleList([MomentumEncoder(self.encoder)] if config.momentum_encoder else [])

    @property
    def encoder(self) -> nn.Sequential:
        """Backbone and head: what the momentum encoder follows."""
        return nn.Sequential(self.backbone, self.head)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return minus the nuclear norm of the averages."""
        images = torch.cat([view.image for view in views])
        embeddings = self.encoder(images).unflatten(0, (len(views), -1))
        slow = self.target[0](images).unflatten(0, (len(views), -1)) if self.target else None
        return StepOutput(mmcr_loss(embeddings, self.config.local_weight, slow, group=world()))

    def after_optimizer_step(self) -> None:
        """Let the momentum encoder follow."""
        for target in self.target:
            target.update(self.encoder, self.config.momentum)  # type: ignore[operator]
