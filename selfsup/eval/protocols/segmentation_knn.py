"""Segmentation by neighbours: a cell of the map takes the classes of the training cells most like it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder
from selfsup.eval.features import check_finite
from selfsup.eval.neighbours import search
from selfsup.eval.pixels import (
    IGNORED,
    by_name,
    check_counts,
    check_dense,
    confusion,
    images_a_block,
    intersection_over_union,
    last_class,
    masked_maps,
    mean_iou,
)
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, image_counts
from selfsup.settings import setting

VOTES = 2**22  # cells whose neighbours' classes are gathered at a time, times neighbours, times classes


@dataclass
class SegmentationKnnSettings:
    """Which cells vote, and how.

    Attributes:
        k: Neighbours that vote on the classes of a cell.
        temperature: Of their vote.
        images: Most training images.
        cells: Most training cells among which neighbours are looked for.
        batch_size: Images in a forward pass.
    """

    k: int = setting(30, least=1)
    temperature: float = setting(0.02, above=0)
    images: int = setting(2000, least=1)
    cells: int = setting(20_000, least=1)
    batch_size: int = setting(32, least=1)


@protocol("segmentation_knn", SegmentationKnnSettings, needs=("network", "masks", "dense"), shown=("k", "temperature"))
def evaluate(subject: Subject, settings: SegmentationKnnSettings) -> Iterator[Record]:
    """Mean IoU when each cell takes the classes of its nearest training cells; nothing is trained or chosen."""
    split, scored = subject.scored
    result = segmentation_knn(subject.encoder, subject.splits.train, scored, settings, subject.seed)
    read, scored_on = result.images
    tested, held = (scored_on, 0) if split == "test" else (0, scored_on)
    how: dict[str, Any] = {
        "primary": True,
        "k": settings.k,
        "temperature": settings.temperature,
        "neighbours": result.bank.k,
    }
    how |= {"bank_cells": len(result.bank.features), "dim": result.bank.features.shape[1]}
    how |= {"map_size": list(result.map_size), "mask_size": scored.image_size, **image_counts(read, held, tested)}
    found = {"per_class": by_name(result.per_class, scored), "pixel_accuracy": result.pixel_accuracy}
    yield Record(split=split, metric="miou", value=result.miou, how=how, found=found)


@dataclass(frozen=True)
class CellBank:
    """Cells of training maps and what is in them: the neighbours a query cell takes its classes from.

    Attributes:
        features: float32 ``[M,D]`` on the CPU.
        classes: float32 ``[M,C]``: which share of the cell's pixels is of which class; each row sums to 1.
        k: Number of neighbours, at most ``M``.
        temperature: Of the softmax over their cosine similarities.
    """

    features: Tensor
    classes: Tensor
    k: int
    temperature: float

    def probabilities(self, maps: Tensor) -> Tensor:
        """Return the weighted mean of the neighbours' classes: float ``[N,D,h,w]`` to float32 ``[N,C,h,w]``, CPU.

        ``p(q) = Σ_i softmax_i(cos(q, b_i) / T) · y_i`` over the ``k`` cells ``b_i`` most similar to ``q`` (Balažević
        et al. 2023, "Towards In-Context Scene Understanding").
        """
        count, width, height, length = maps.shape
        queries = maps.permute(0, 2, 3, 1).reshape(-1, width).float().cpu()
        similarity, near = search(self.features, queries, self.k)
        weights = (similarity / self.temperature).softmax(1)
        rows = max(1, VOTES // (self.k * self.classes.shape[1]))
        votes = torch.cat(
            [
                torch.einsum("qk,qkc->qc", some, self.classes[positions])
                for some, positions in zip(torch.split(weights, rows), torch.split(near, rows), strict=True)
            ]
        )
        return votes.view(count, height, length, -1).permute(0, 3, 1, 2)

    def predict(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the class of every pixel: float ``[N,D,h,w]`` to int64 ``[N,*size]``, upsampled bilinearly."""
        blocks = torch.split(self.probabilities(maps), images_a_block(self.classes.shape[1], size))
        return torch.cat([F.interpolate(b, size, mode="bilinear", align_corners=False).argmax(1) for b in blocks])


@dataclass(frozen=True)
class SegmentationKnnResult:
    """What the neighbours' vote found.

    Attributes:
        miou, per_class, pixel_accuracy: As in ``SegmentationResult``.
        bank: The training cells, their classes, the number of neighbours that voted and the temperature.
        map_size: (height, width) of the feature map.
        images: Number of images the bank is drawn from and scored on.
    """

    miou: float
    per_class: dict[int, float]
    pixel_accuracy: float
    bank: CellBank
    map_size: tuple[int, int]
    images: tuple[int, int]


def segmentation_knn(
    encoder: Encoder, train: ImageDataset, scored: ImageDataset, settings: SegmentationKnnSettings, seed: int = 0
) -> SegmentationKnnResult:
    """Segment images by the training cells that are most like their own, and score the result once.

    A bank is drawn from the feature maps of the training images: the same number of cells of each, as many as make at
    most ``cells``; those without a single pixel of known class are left out. Every cell of a scored image gets the
    classes of its ``k`` neighbours in the bank (see ``CellBank``), which are upsampled bilinearly to the image. Nothing
    is trained and nothing is chosen. Memory holds the bank, ``cells`` × (width of the maps + classes), beside the maps
    and the neighbours of a batch.

    Args:
        encoder: A network with ``forward_dense``.
        train: Images with masks for the bank; at most ``settings.images``, drawn with ``seed``, are read.
        scored: Images to score, all of them, at the resolution of their evaluation crop.
        settings: Of the bank and the vote; a bank smaller than ``k`` votes as a whole.
        seed: Choice of the images and of their cells.

    Raises:
        UserError: No masks, no dense features, features that are not finite, a setting out of range, or no pixel of
            known class.
    """
    check_dense(encoder, train)
    if min(settings.k, settings.images, settings.cells, settings.batch_size) < 1 or not settings.temperature > 0:
        raise UserError(
            "eval.segmentation_knn.k, images, cells and batch_size must be at least 1, and "
            "eval.segmentation_knn.temperature above 0."
        )
    encoder = replace(encoder, batch_size=settings.batch_size)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)[: min(settings.images, settings.cells)]
    train = train.subset(order.sort().values)
    each = settings.cells // len(train)
    features, shares, map_size = [], [], (0, 0)

    read = 0
    with masked_maps(encoder, train) as batches:
        for maps, masks in batches:
            check_finite(maps.flatten(1), f"feature maps of '{train.name}'")
            map_size = (maps.shape[2], maps.shape[3])
            places = torch.stack([torch.randperm(maps[0, 0].numel(), generator=generator)[:each] for _ in maps])
            share = cell_classes(masks, 1 + last_class(masks, train), map_size).flatten(2)
            here = share.transpose(1, 2).gather(1, places[..., None].expand(-1, -1, share.shape[1]))
            cut = maps.flatten(2).transpose(1, 2).cpu().gather(1, places[..., None].expand(-1, -1, maps.shape[1]))
            known = here.sum(2) > 0
            features.append(cut[known])
            shares.append(here[known])
            read += len(masks)
    classes = max(share.shape[1] for share in shares)
    bank_features = torch.cat(features)
    if not len(bank_features):
        raise UserError(f"segmentation: no pixel of '{train.name}' {train.split} has a class; its masks are empty.")
    bank = CellBank(
        bank_features,
        torch.cat([F.pad(share, (0, classes - share.shape[1])) for share in shares]),
        min(settings.k, len(bank_features)),
        settings.temperature,
    )
    total = torch.zeros(classes, classes, dtype=torch.long)

    scored_on = 0
    with masked_maps(encoder, scored) as batches:
        for maps, masks in batches:
            total += confusion(bank.predict(maps, (masks.shape[1], masks.shape[2])), masks, classes)
            scored_on += len(masks)
    check_counts(total, scored)
    per_class = intersection_over_union(total)
    return SegmentationKnnResult(
        miou=mean_iou(per_class),
        per_class=per_class,
        pixel_accuracy=(total.diagonal().sum() / total.sum()).item(),
        bank=bank,
        map_size=map_size,
        images=(read, scored_on),
    )


def cell_classes(masks: Tensor, classes: int, map_size: tuple[int, int]) -> Tensor:
    """Return which share of each cell's pixels is of each class, of those pixels whose class is known.

    Args:
        masks: uint8 ``[N,H,W]``, values below ``classes`` or ``IGNORED``.
        classes: Number of classes ``C``.
        map_size: (height, width) of the grid of cells; where it does not divide the mask, cells share pixels.

    Returns:
        float32 ``[N,C,*map_size]``; the sum over ``C`` is 1, or 0 where no pixel's class is known.
    """
    found = []
    for block in torch.split(masks, images_a_block(classes, (masks.shape[1], masks.shape[2]))):
        # the ignored value goes to a class of its own, which is dropped
        numbers = block.long().where(block != IGNORED, classes)
        ones = F.one_hot(numbers, classes + 1).permute(0, 3, 1, 2)[:, :classes].float()
        pooled = F.adaptive_avg_pool2d(ones, map_size)
        found.append(pooled / pooled.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
    return torch.cat(found)
