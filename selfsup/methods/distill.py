"""Distillation: a student sees images as a frozen teacher does, without labels.

Both see the same strong crop. The student's feature, brought to the teacher's width by a linear layer, is compared with
the teacher's features of earlier images, a queue of pseudo-classes, and must give the distribution that the teacher's
own feature gives: Fang et al., "SEED: Self-supervised Distillation for Visual Representation", 2021. Beside that each
cell of its feature map follows the teacher's cell at the same place, whatever the two grids are. Read:
jacobswan1/SEED, 81ff933, and the distillations of lightly-train, 11fca6e.

Order within a step, as SEED's: compare with the queue as it was and with the teacher's own feature of the image, then
enqueue that. ``spatial=contrast`` tells the teacher's cell from cells of other images in place of pointing where it
points: the loss of Huang and Guo, "Pixel-Wise Contrastive Distillation", 2022, with a cell of each image in the queue.

Deviations: the teacher gives the features that are evaluated, without its projection head, so heads and temperatures
are lightly-train's, and the loss is the divergence, which is the cross-entropy less a constant. lightly-train mixes
images and compares cells within one; pixel-wise distillation gives the student attention and the teacher's head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selfsup.errors import UserError, reason_of
from selfsup.functional import info_nce, map_distillation, resample_map, similarity_distillation
from selfsup.methods.base import Method
from selfsup.methods.parts import Parts
from selfsup.methods.queued import check_queue
from selfsup.methods.taught import TaughtConfig, teacher_of
from selfsup.nn import FeatureQueue
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.shortage import lacks_memory
from selfsup.types import Batch, StepOutput, View, height_width


@dataclass
class DistillConfig(TaughtConfig):
    """Distillation's settings.

    Attributes:
        temperature: τ of the student's distribution over the queue.
        teacher_temperature: τ of the teacher's; SEED, on the outputs of heads, has 0.2 and 0.01.
        queue_size: Number of the teacher's features of earlier images, at least one batch.
        spatial: What holds cells of the feature maps: ``cosine``, they point where the teacher's do; ``contrast``, they
            tell the teacher's from cells of other images.
        spatial_weight: Factor on that; 0 leaves feature maps out.
    """

    name: str = "distill"
    temperature: float = setting(0.07, above=0)
    teacher_temperature: float = setting(0.07, above=0)
    queue_size: int = setting(8192, least=1)
    spatial: str = setting("cosine", choices=("cosine", "contrast"))
    spatial_weight: float = setting(1.0, least=0)


@methods.register("distill", DistillConfig, optimizer="sgd", augment="distill")
class Distill(Method):
    """Let a student compare images as a frozen teacher does, and see in each place what it sees."""

    view_count = (1, 1)

    def __init__(self, config: DistillConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_queue(config.queue_size, parts.batch_size)
        self.config = config
        self.teacher = teacher_of(parts)
        feature, cells, own_cells = self.widths(parts)
        self.head = nn.Linear(self.backbone.dim, feature)
        self.queue = FeatureQueue(config.queue_size, feature)
        if config.spatial_weight:
            self.cell_head = nn.Conv2d(own_cells, cells, 1)
            if config.spatial == "contrast":
                self.cell_queue = FeatureQueue(config.queue_size, cells)

    @torch.no_grad()
    def widths(self, parts: Parts) -> tuple[int, int, int]:
        """Return the widths of the teacher's feature and of the cells of both maps, after one pass of an empty image.

        Raises:
            UserError: Either network takes no such image, or has no map where one is needed.
        """
        shape = (1, self.backbone.in_channels, *height_width(parts.views.sizes[0]))
        image, mode = next(self.backbone.parameters()).new_zeros(shape), self.backbone.training
        wanted = self.config.spatial_weight > 0
        try:
            feature, cells = self.teacher(image, wanted)
        except Exception as error:  # a network of anybody's may raise anything
            if lacks_memory(error):
                raise
            raise UserError(
                f"method.teacher cannot see views of {shape[2]}×{shape[3]} pixels ({reason_of(error)}); set "
                "data.image_size to a side that it takes, or method.spatial_weight=0 where it has no feature map."
            ) from error
        if not wanted:
            return feature.shape[1], 0, 0
        try:
            own = self.backbone.eval().forward_dense(image)
        except UserError as error:
            raise UserError(f"{error} method.spatial_weight=0 does without the map.") from error
        self.backbone.train(mode)
        assert cells is not None
        return feature.shape[1], cells.shape[1], own.shape[1]

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return what student and teacher differ in, over the queue as it was and over the maps; then enqueue."""
        config, (view,) = self.config, views
        told, cells = self.teacher(view.image, config.spatial_weight > 0)
        feature, own = (self.backbone(view.image), None) if cells is None else self.backbone.forward_both(view.image)
        temperatures = config.temperature, config.teacher_temperature
        logs = {"similarity": similarity_distillation(self.head(feature), told, self.queue.negatives(), *temperatures)}
        self.queue.enqueue(told)
        if cells is None or own is None:
            return StepOutput(logs["similarity"], logs)
        own = self.cell_head(own)
        logs["spatial"] = (
            map_distillation(own, cells) if config.spatial == "cosine" else self.contrast(own, cells, batch)
        )
        return StepOutput(logs["similarity"] + config.spatial_weight * logs["spatial"], logs)

    def contrast(self, own: Tensor, cells: Tensor, batch: Batch) -> Tensor:
        """Return InfoNCE of all cells with the teacher's as keys, then enqueue one of the teacher's of each image."""
        count = cells.shape[2] * cells.shape[3]
        query = resample_map(own, (cells.shape[2], cells.shape[3])).flatten(2).transpose(1, 2)  # [B,S²,D]
        key = cells.flatten(2).transpose(1, 2)
        negatives = self.cell_queue.negatives()
        loss = info_nce(query.flatten(0, 1), key.flatten(0, 1), negatives, self.config.temperature)
        chosen = (self.draw(batch.index, 0)(1)[:, 0] * count).long().clamp(max=count - 1)
        self.cell_queue.enqueue(key[torch.arange(len(key)), chosen.to(key.device)])
        return loss
