"""W-MSE: views of an image attract, and whitening keeps the embeddings from collapsing.

A random sub-batch of embeddings is whitened by the Cholesky factor of its covariance, so they spread over a sphere
whatever the network does. What is left to minimise is the squared distance between the whitened views of an image:
there are no negatives, no stop-gradient and no momentum encoder. Ermolov et al., "Whitening for Self-Supervised
Representation Learning", 2021.

Each view passes the backbone apart, with BatchNorm statistics of its own, and all views pass the head at once, as in
the authors' code.

Deviations: with several ranks, which the authors do not treat, sub-batches come from the images of all ranks
(``scope``). The crop comes before the colours in the recipe, as in all recipes here; the authors' comes after them. The
learning rate falls along a cosine; ``experiment=imagenet/wmse`` has the authors' two drops.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.functional import whitening_mse
from selfsup.functional.collectives import gather
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View

JITTER = 1e-4  # of the mean variance


@dataclass
class WMSEConfig(MethodConfig):
    """W-MSE's settings, with the authors' values for CIFAR; two views are W-MSE 2, four (``augment.counts``) W-MSE 4.

    Attributes:
        subbatch_size: Images whitened together; above ``output_dim`` (the authors take twice that), and a divisor of
            the batch.
        iterations: Random divisions into sub-batches that the loss is averaged over.
        eps: ε of the whitened covariance (1-ε)Σ + εI.
        normalize: Compare whitened embeddings on the unit sphere (cosine); else by the plain mean squared error.
        hidden_dim: Width of the head's hidden layer.
        output_dim: Width of the embedding.
        scope: Where sub-batches come from: ``world``, the images of all ranks, so that the number of ranks changes
            nothing; ``rank``, each rank's own, without communication.
        on_singular: What a singular covariance (up to rounding) does: ``error`` stops the run; ``jitter`` adds 1e-4 of
            its mean variance to its diagonal and goes on. ``train/singular`` counts them since the start.
    """

    name: str = "wmse"
    subbatch_size: int = setting(128, least=1)
    iterations: int = setting(1, least=1)
    eps: float = setting(0.0, least=0, below=1)
    normalize: bool = True
    hidden_dim: int = setting(1024, least=1)
    output_dim: int = setting(64, least=1)
    scope: str = setting("world", choices=("world", "rank"))
    on_singular: str = setting("error", choices=("error", "jitter"))


@methods.register("wmse", WMSEConfig, optimizer="adam", augment="wmse")
class WMSE(Method):
    """Attract the whitened embeddings of two or more views of each image (W-MSE)."""

    view_count = (2, None)
    couples_images = True

    def __init__(self, config: WMSEConfig, parts: Parts) -> None:
        super().__init__(parts)
        _check(config, parts)
        self.config = config
        self.head = projection_head([self.backbone.dim, config.hidden_dim, config.output_dim], batch_norm=True)
        self.singular: Tensor
        self.register_buffer("singular", torch.zeros((), dtype=torch.long))

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the distance between the whitened views."""
        config = self.config
        features = torch.cat([self.backbone(view.image) for view in views])
        embeddings = self.head(features).unflatten(0, (len(views), -1))
        failures = torch.zeros_like(self.singular)
        loss = whitening_mse(
            embeddings,
            config.subbatch_size,
            config.iterations,
            config.eps,
            config.normalize,
            self.batch_generator(),
            jitter=JITTER if config.on_singular == "jitter" else 0.0,
            failures=failures,
            group=world() if config.scope == "world" else None,
        )
        if config.scope == "rank":
            failures = gather(failures[None], world()).sum()
        self.singular += failures
        return StepOutput(loss, {"singular": self.singular.float()})

    def on_before_backward(self, loss: Tensor) -> None:
        """Stop with the reason when a covariance was singular; looks when the loss is looked at, no more often."""
        if self.config.on_singular == "error" and self.looks and int(self.singular):
            raise UserError(
                f"{int(self.singular)} covariance matrices of W-MSE were singular: raise method.subbatch_size "
                "to twice method.output_dim or more, set method.eps=1e-4 or method.on_singular=jitter, or lower "
                "optimizer.lr."
            )


def _check(config: WMSEConfig, parts: Parts) -> None:
    if config.subbatch_size <= config.output_dim:
        raise UserError(
            f"method.subbatch_size={config.subbatch_size} must be above method.output_dim={config.output_dim}, better "
            "twice that: fewer images have a singular covariance."
        )
    images, whose = parts.batch_size, "batch_size"
    if config.scope == "rank":
        images, whose = images // parts.world_size, "batch_size on each rank"
    if images % config.subbatch_size:
        raise UserError(
            f"method.subbatch_size={config.subbatch_size} does not divide the {images} images ({whose}); change one of "
            "them so that it does."
        )
