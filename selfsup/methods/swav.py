"""SwAV: predict a view's cluster assignment from the other views of the image.

Embeddings are compared with trainable prototypes. Sinkhorn-Knopp turns the scores of the two global views into codes
that use all prototypes about equally, so that the trivial answer, one cluster for everything, is no solution. Each
view, small local crops included, then predicts the codes of the other global views. Caron et al., "Unsupervised
Learning of Visual Features by Contrasting Cluster Assignments", 2020.

With small batches a queue of earlier embeddings, one for each global view, joins the assignment. Its scores are those
of the present prototypes. It is used from the moment it is full, and a batch enters it after its own codes are made.

Deviations: the queue may have any length (the authors cut it to a multiple of the batch), lives in the checkpoint and
is the same on all ranks, each of which scores its share of it; the largest score over all ranks is taken out before the
exponential; scores and codes are float32 under autocast. Freezing is counted in epochs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.functional import sinkhorn, swapped_prediction
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import FeatureQueue, Prototypes, projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View

GLOBAL_VIEWS = 2


@dataclass
class SwAVConfig(MethodConfig):
    """SwAV's settings, with the defaults of the authors' recipe for batch 256.

    Attributes:
        temperature: τ of the predictions.
        epsilon: Smoothness of the codes. Lower it (0.03) when the loss stays at ln(prototypes).
        sinkhorn_iterations: Rounds of the assignment.
        prototypes: Number of prototypes.
        freeze_prototypes_epochs: Epochs during which the prototypes stay as they began.
        queue_size: Embeddings of each global view kept for the assignment, at least one batch; 0 is no queue, as in
            the authors' recipe for batch 4096.
        queue_start_epoch: First epoch (from 0) whose embeddings are kept.
        hidden_dim: Width of the head's hidden layer.
        output_dim: Width of the embedding.
    """

    name: str = "swav"
    temperature: float = setting(0.1, above=0)
    epsilon: float = setting(0.05, above=0)
    sinkhorn_iterations: int = setting(3, least=1)
    prototypes: int = setting(3000, least=1)
    freeze_prototypes_epochs: int = 1
    queue_size: int = setting(3840, least=0)
    queue_start_epoch: int = 15
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(128, least=1)


@methods.register("swav", SwAVConfig, optimizer="swav", augment="swav")
class SwAV(Method):
    """Predict a view's balanced cluster assignment from the other views, small crops included."""

    view_count = (GLOBAL_VIEWS, None)
    couples_images = True

    def __init__(self, config: SwAVConfig, parts: Parts) -> None:
        super().__init__(parts)
        if 0 < config.queue_size < parts.batch_size:
            raise UserError(
                f"method.queue_size={config.queue_size} is smaller than batch_size={parts.batch_size}; raise it, or "
                "set it to 0 for no queue."
            )
        if len(set(parts.views.sizes[:GLOBAL_VIEWS])) > 1:
            raise UserError("SwAV's first two views are global ones of one size; let augment.counts begin with 2.")
        self.config = config
        self.head = projection_head([self.backbone.dim, config.hidden_dim, config.output_dim], batch_norm=True)
        self.prototypes = Prototypes(config.prototypes, config.output_dim)
        queues = GLOBAL_VIEWS if config.queue_size else 0
        self.queues = nn.ModuleList([FeatureQueue(config.queue_size, config.output_dim) for _ in range(queues)])
        self.stored: Tensor
        self.register_buffer("stored", torch.zeros((), dtype=torch.long))  # images put into the queues so far
        self._read: tuple[int, int] | None = None

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the swapped prediction; the global views' embeddings then enter the queues."""
        self.prototypes.normalize_()
        embeddings = self.head(self.encode(views).flatten(0, 1))
        scores = self.prototypes(embeddings).chunk(len(views))
        codes = self.assign(scores[:GLOBAL_VIEWS])
        if self.current_epoch >= self.config.queue_start_epoch and self.queues:
            for queue, view in zip(self.queues, embeddings.chunk(len(views)), strict=False):
                queue.enqueue(view.detach())  # type: ignore[operator]
            count = self.count_stored() + self.batch_size
            self.stored += self.batch_size
            self._read = (self.stored._version, count)
        return StepOutput(swapped_prediction(scores, codes, self.config.temperature))

    def count_stored(self) -> int:
        """Return ``stored``. The device is asked only when somebody else has written there, as a resumed run does."""
        if self._read is None or self._read[0] != self.stored._version:
            self._read = (self.stored._version, int(self.stored))
        return self._read[1]

    @torch.no_grad()
    def assign(self, scores: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the codes of the global views, assigned together with the queues' embeddings once these are full."""
        config, group = self.config, world()
        full = bool(self.queues) and self.count_stored() >= config.queue_size
        codes = []
        for number, own in enumerate(scores):
            rows = own.detach()
            if full:
                stored = self.queues[number].negatives()  # type: ignore[operator]
                share = stored.tensor_split(self.world_size)[self.global_rank]
                rows = torch.cat([self.prototypes(share), rows])
            codes.append(sinkhorn(rows, config.epsilon, config.sinkhorn_iterations, group)[-len(own) :])
        return codes

    def frozen_parameters(self) -> Iterable[nn.Parameter]:
        """The prototypes, in the first epochs."""
        frozen = self.current_epoch < self.config.freeze_prototypes_epochs
        return self.prototypes.parameters() if frozen else ()
