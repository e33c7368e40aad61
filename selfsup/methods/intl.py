"""INTL: whiten the views in part, by a few Newton steps, and draw their spectrum to 1 by a loss on its trace.

The views of a batch are whitened over their channels by iterative normalisation, which after four steps leaves small
eigenvalues below 1, and the whitened views of an image are brought together. That alone permits a collapse of some
dimensions; a second term, the squared distance of every sample's variance from 1, forces all eigenvalues to be equal.
No negatives, no stop-gradient, no momentum encoder. Weng et al., "Modulate Your Spectrum in Self-Supervised Learning",
2024.

As in the authors' code (winci-ai/INTL, 0aa69af) samples are whitened over their channels (their ``axis 0``), with the
images of all ranks, and each view passes network and head by itself.

Deviations: none in the method. Their variant with a momentum encoder and small crops is not built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from selfsup.distributed import world
from selfsup.functional import intl_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class INTLConfig(MethodConfig):
    """INTL's settings, with the authors' values for CIFAR; two views or more.

    Attributes:
        iterations: Newton steps of the whitening; after more than eight float32 has no digits left.
        trace_weight: β of the trace loss; None is the authors' 0.01 (log₂ batch - 3).
        hidden_dim: Width of the head's two hidden layers.
        output_dim: Width of the embedding.
    """

    name: str = "intl"
    iterations: int = setting(4, least=1, most=8)
    trace_weight: float | None = setting(None, least=0)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(2048, least=2)


@methods.register("intl", INTLConfig, optimizer="sgd", augment="byol")
class INTL(Method):
    """Attract the iteratively whitened embeddings of the views, with a loss on the trace of their spectrum."""

    view_count = (2, None)
    couples_images = True

    def __init__(self, config: INTLConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.iterations = config.iterations
        own = 0.01 * (math.log2(parts.batch_size) - 3)
        self.trace_weight = max(0.0, own) if config.trace_weight is None else config.trace_weight
        dims = [self.backbone.dim, config.hidden_dim, config.hidden_dim, config.output_dim]
        self.head = projection_head(dims, batch_norm=True, bias=False, last_bias=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the distance of all views from the first, and the trace loss."""
        embeddings = torch.stack([self.head(self.backbone(view.image)) for view in views])
        return StepOutput(intl_loss(embeddings, self.trace_weight, self.iterations, world()))
