"""DeepCluster v2: predict, from every view, the cluster that k-means gave to the image at the start of the epoch.

A memory holds the embeddings of every image, of two views, from the epoch before. At the start of an epoch spherical
k-means divides them, several times over from different starts; its centroids become fixed prototypes, and all views of
an image, small crops included, are to name the image's cluster in each division. Caron et al., "Unsupervised Learning
of Visual Features by Contrasting Cluster Assignments", 2020, appendix.

The first embeddings come from a pass over the images before the training, as in the authors' code
(facebookresearch/swav, 06b1b7c). In a loop of one's own that is ``fill``; without it the first epoch's clusters are
random.

Deviations: the memory is keyed by the index of the image and is the same on all ranks, each of which clusters all of
it; the authors' holds an epoch's images by their place on each rank. An image that an epoch leaves out (the rest that
fills no batch) keeps its earlier embedding, where theirs gets no cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from selfsup.errors import UserError
from selfsup.functional import deepcluster_loss, spherical_lloyd
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import ImageMemory, Prototypes, projection_head
from selfsup.random import fold_in
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View

BANKS = 2  # views of which an embedding is kept; they are the first ones


@dataclass
class DeepClusterV2Config(MethodConfig):
    """DeepCluster v2's settings, with the authors' defaults.

    Attributes:
        temperature: τ of the predictions.
        prototypes: Clusters of each division; each at most the number of images.
        kmeans_iterations: Rounds of k-means.
        hidden_dim: Width of the head's hidden layer.
        output_dim: Width of the embedding.
    """

    name: str = "deepcluster_v2"
    temperature: float = setting(0.1, above=0)
    prototypes: list[int] = setting([3000, 3000, 3000], least=1)
    kmeans_iterations: int = setting(10, least=1)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(128, least=1)


@methods.register("deepcluster_v2", DeepClusterV2Config, optimizer="swav", augment="swav")
class DeepClusterV2(Method):
    """Predict the cluster that k-means gave to the image at the start of the epoch, small crops included."""

    view_count = (BANKS, None)
    needs_index = True

    def __init__(self, config: DeepClusterV2Config, parts: Parts) -> None:
        super().__init__(parts)
        if len(set(parts.views.sizes[:BANKS])) > 1:
            raise UserError("DeepCluster v2's first two views have one size; let augment.counts begin with 2.")
        self.config = config
        dim = config.output_dim
        self.head = projection_head([self.backbone.dim, config.hidden_dim, dim], batch_norm=True)
        self.prototypes = nn.ModuleList([Prototypes(k, dim).requires_grad_(False) for k in config.prototypes])
        self.memory = ImageMemory(parts.index, dim, BANKS)
        self.assignment: Tensor
        self.clustered: Tensor
        self.register_buffer("assignment", torch.zeros(len(config.prototypes), len(self.memory), dtype=torch.long))
        self.register_buffer("clustered", torch.full((), -1))  # the epoch that the clusters are of
        self._read: tuple[int, int] | None = None

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the prediction of the images' clusters, then keep the embeddings of the first two views."""
        if self._read != (self.clustered._version, self.current_epoch):
            self.cluster()
        rows = self.memory.rows(batch.index)
        embeddings = self.head(self.encode(views).flatten(0, 1))
        scores = [prototypes(embeddings).unflatten(0, (len(views), -1)) for prototypes in self.prototypes]
        loss = deepcluster_loss(scores, self.assignment[:, rows], self.config.temperature)
        self.memory.write(rows, embeddings.detach().unflatten(0, (len(views), -1))[:BANKS])
        return StepOutput(loss)

    def check_images(self) -> None:
        """Refuse to cluster what is not there, or into more clusters than images."""
        if not len(self.memory):
            raise UserError("DeepCluster v2 keeps embeddings of every image: build it with images=…, their number.")
        if max(self.config.prototypes) > len(self.memory):
            raise UserError(
                f"method.prototypes={self.config.prototypes} asks for more clusters than there are images "
                f"({len(self.memory)}); lower it."
            )

    @torch.no_grad()
    def cluster(self) -> None:
        """Divide the images anew where that is not done in this epoch: each division begins with images drawn anew."""
        self.check_images()
        epoch, rounds = self.current_epoch, self.config.kmeans_iterations
        if int(self.clustered) != epoch:
            for number, prototypes in enumerate(self.prototypes):
                points: Tensor = self.memory.values[number % BANKS]  # type: ignore[index]
                weight: Tensor = prototypes.weight  # type: ignore[assignment]
                generator = torch.Generator().manual_seed(fold_in(fold_in(self.seed, epoch), number))
                drawn = torch.randperm(len(points), generator=generator)[: len(weight)].to(points.device)
                centroids, self.assignment[number] = spherical_lloyd(points, points[drawn], rounds)
                if isinstance(weight, DTensor):  # sharded training: each rank keeps its part
                    centroids = distribute_tensor(centroids, weight.device_mesh, weight.placements)
                weight.copy_(centroids)
            self.clustered.fill_(epoch)
        self._read = (self.clustered._version, epoch)

    @torch.no_grad()
    def fill(self, batches: Iterable[Any]) -> None:
        """Keep the embeddings of every image, from one pass in training mode without learning.

        Args:
            batches: One epoch of what trains, with an index.
        """
        self.check_images()
        for number, given in enumerate(batches):
            batch = given if isinstance(given, Batch) else self._foreign(given, number)
            batch = self.transfer_batch_to_device(batch, self.device, 0)
            embeddings = self.head(self.encode(self.draw_views(batch, number)[:BANKS]).flatten(0, 1))
            self.memory.write(self.memory.rows(batch.index), embeddings.unflatten(0, (BANKS, -1)))

    def on_train_start(self) -> None:
        """Fill the memory where a training begins; one that goes on has its own."""
        if self.steps_done == 0:
            assert self.trainer.train_dataloader is not None
            self.fill(self.trainer.train_dataloader)
