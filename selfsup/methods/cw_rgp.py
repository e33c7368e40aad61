"""CW-RGP: whiten samples over their channels, in random groups of channels, and bring the views together.

W-MSE whitens the channels of a batch, for which the batch must be larger than the embedding is wide. Turned round, the
samples of a sub-batch are made uncorrelated over the channels, which wants the embedding to be wider than the
sub-batch; cut at random into groups of channels that are whitened apart, a wide embedding serves several times. What is
left to minimise is the distance between the whitened views: no negatives, no stop-gradient, no momentum encoder. Weng
et al., "An Investigation into Whitening Loss for Self-supervised Learning", 2022.

As in the authors' code (winci-ai/CW-RGP, 5bbf6ed) every view of every sub-batch has random groups of its own, each view
passes the backbone apart and all views pass the head at once.

Deviations: with several ranks sub-batches come from the images of all of them; the authors whiten on each GPU. The
gradient of the inverse root is the exact one, which stays finite where eigenvalues are equal. The covariance loss that
their ImageNet script may add is not built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.functional import channel_whitening_mse
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class CWRGPConfig(MethodConfig):
    """CW-RGP's settings, with the authors' values for CIFAR; four views (``augment.counts``) are CW-RGP 4.

    Attributes:
        subbatch_size: Images whitened together; below ``output_dim`` / ``groups``, and a divisor of the batch.
        groups: Groups of channels; a divisor of ``output_dim``.
        iterations: Random divisions into sub-batches and groups that the loss is averaged over.
        eps: ε of the whitened covariance (1-ε)Σ + εI.
        normalize: Compare whitened embeddings on the unit sphere (cosine); else by the plain mean squared error.
        hidden_dim: Width of the head's hidden layers.
        output_dim: Width of the embedding.
        head_layers: Linear layers of the head.
    """

    name: str = "cw_rgp"
    subbatch_size: int = setting(64, least=1)
    groups: int = setting(4, least=1)
    iterations: int = setting(1, least=1)
    eps: float = setting(0.0, least=0, below=1)
    normalize: bool = True
    hidden_dim: int = setting(1024, least=1)
    output_dim: int = setting(512, least=2)
    head_layers: int = setting(2, least=1)


@methods.register("cw_rgp", CWRGPConfig, optimizer="adam", augment="wmse")
class CWRGP(Method):
    """Attract the embeddings of two or more views, whitened over random groups of channels."""

    view_count = (2, None)
    couples_images = True

    def __init__(self, config: CWRGPConfig, parts: Parts) -> None:
        super().__init__(parts)
        _check(config, parts)
        self.config = config
        hidden = [config.hidden_dim] * (config.head_layers - 1)
        self.head = projection_head([self.backbone.dim, *hidden, config.output_dim], batch_norm=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the distance between the whitened views."""
        config = self.config
        embeddings = self.head(torch.cat([self.backbone(view.image) for view in views])).unflatten(0, (len(views), -1))
        chance = torch.Generator().manual_seed(self._batch_seed)  # the same on every rank
        settings = (config.subbatch_size, config.groups, config.eps, config.normalize, chance, world())
        losses = [channel_whitening_mse(embeddings, *settings) for _ in range(config.iterations)]
        return StepOutput(torch.stack(losses).mean())

    def on_before_backward(self, loss: Tensor) -> None:
        """Stop with the reason when a covariance was singular; looks when the loss is looked at, no more often."""
        if self.looks and not bool(loss.isfinite()):
            raise UserError(
                "A covariance of CW-RGP was singular, or an embedding not finite: two images of a sub-batch may be "
                "alike. Set method.eps=1e-4, lower method.subbatch_size or method.groups, or lower optimizer.lr."
            )


def _check(config: CWRGPConfig, parts: Parts) -> None:
    if config.output_dim % config.groups or config.output_dim // config.groups <= config.subbatch_size:
        raise UserError(
            f"method.groups={config.groups} must divide method.output_dim={config.output_dim} into groups of more "
            f"channels than method.subbatch_size={config.subbatch_size}; lower one of the two, or raise the width."
        )
    if parts.batch_size % config.subbatch_size:
        raise UserError(
            f"method.subbatch_size={config.subbatch_size} does not divide batch_size={parts.batch_size}; change one of "
            "them so that it does."
        )
