"""What the segmentation protocols share: maps beside masks, the count of pixels, the mean intersection over union.

Pixels whose mask holds ``IGNORED`` count nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.cropping import crop_centre
from selfsup.eval.encoder import Encoder
from selfsup.eval.features import positions_of
from selfsup.eval.shown import Panels
from selfsup.unit_range import shown_channels

IGNORED = 255  # in a mask: no class is said of this pixel, as on the outlines of PASCAL VOC
LOGITS = 2**24  # numbers in a block of upsampled logits: 64 MB
SHOWN = 6  # images in the figure


class PixelPredictor(Protocol):
    """What gives every pixel a class."""

    def predict(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the class of every pixel: float ``[N,D,h,w]`` to int64 ``[N,*size]``."""


@contextmanager
def masked_maps(encoder: Encoder, dataset: ImageDataset) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Give the feature maps float32 ``[n,D,h,w]`` and masks uint8 ``[n,h,w]`` of every image, in order."""

    with encoder.maps(dataset) as batches:
        yield ((maps, masks_of(encoder, dataset, positions_of(dataset, index))) for maps, index in batches)


def masks_of(encoder: Encoder, dataset: ImageDataset, positions: Tensor) -> Tensor:
    """Return the masks uint8 ``[n,h,w]`` of some images of data that has them, at their evaluation crop."""
    stored = dataset.read_masks(positions)
    assert stored is not None  # the protocol needs them
    # resized and cropped as the images are, by nearest neighbour
    return crop_centre(stored[:, None], dataset.image_size, encoder.resize, mode="nearest-exact")[:, 0]


def segment(encoder: Encoder, classifier: PixelPredictor, dataset: ImageDataset) -> tuple[Tensor, Tensor]:
    """Return predicted and true masks, int64 ``[N,h,w]``, at the resolution of the evaluation crop.

    The true ones may hold ``IGNORED``.
    """
    predicted, truth = [], []
    with masked_maps(encoder, dataset) as batches:
        for maps, masks in batches:
            predicted.append(classifier.predict(maps, (masks.shape[1], masks.shape[2])).cpu())
            truth.append(masks.long())
    return torch.cat(predicted), torch.cat(truth)


def panels(encoder: Encoder, classifier: PixelPredictor, scored: ImageDataset) -> Panels:
    """Return images, true masks and predicted masks of some scored images, spaced evenly, for the figure."""
    chosen = scored.subset(torch.linspace(0, len(scored) - 1, min(SHOWN, len(scored))).round().long())
    predicted, truth = segment(encoder, classifier, chosen)
    pictures = encoder.prepared(chosen.read(torch.arange(len(chosen))), scored.image_size, scored.channels)
    return Panels(shown_channels(pictures), truth, predicted, class_names(scored))


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Count pixels by true and predicted class: two integer tensors of one shape to int64 ``[C,C]``, truth first.

    Pixels whose truth is ``IGNORED`` are left out.

    Raises:
        UserError: A true class beyond ``classes``.
    """
    counted = truth != IGNORED
    true, predicted = truth[counted].long(), predicted[counted].long()
    if len(true) and int(true.max()) >= classes:
        raise UserError(
            f"segmentation: a scored mask holds the value {int(true.max())}, and neither the training masks nor the "
            f"names of the classes go beyond {classes - 1}; repair the masks or take more training images."
        )
    pairs = true * classes + predicted
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def intersection_over_union(matrix: Tensor) -> dict[int, float]:
    """Return ``TP / (TP + FP + FN)`` of each class that the true masks contain, over all pixels together.

    A class that no mask contains is left out, however often it was predicted: those pixels count against the classes
    they were taken from.

    Args:
        matrix: int64 ``[C,C]``, see ``confusion``.
    """
    right, true, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return {c: int(right[c]) / int(true[c] + predicted[c] - right[c]) for c in true.nonzero().flatten().tolist()}


def check_dense(encoder: Encoder, dataset: ImageDataset) -> None:
    """Raise a UserError unless the images have masks and the network gives maps."""
    obstacle = None
    if dataset.read_masks(torch.arange(0)) is None:
        obstacle = f"'{dataset.name}' has no masks"
    elif encoder.network is not None and not hasattr(encoder.network, "forward_dense"):
        obstacle = "the backbone has no forward_dense"
    if obstacle is not None:
        raise UserError(f"segmentation: {obstacle}; take data with masks (data=shapes) and a timm or convnet backbone.")


def check_counts(matrix: Tensor, dataset: ImageDataset) -> None:
    """Raise a UserError where no pixel has a class."""
    if not int(matrix.sum()):
        raise UserError(f"segmentation: no pixel of '{dataset.name}' {dataset.split} has a class; its masks are empty.")


def last_class(masks: Tensor, dataset: ImageDataset) -> int:
    """Return the largest value of the masks that is a class, or that of the last class with a name."""
    return max(int(masks.where(masks != IGNORED, 0).max()), len(dataset.classes or ()))


def class_names(dataset: ImageDataset) -> tuple[str, ...]:
    """Return the names of the values of the masks, as far as they have one."""
    return ("background", *(dataset.classes or ()))


def by_name(per_class: dict[int, float], dataset: ImageDataset) -> dict[str, float]:
    """Return what was found of each class by its name."""
    names = class_names(dataset)
    return {names[c] if c < len(names) else str(c): value for c, value in per_class.items()}


def images_a_block(classes: int, size: tuple[int, int]) -> int:
    """Return how many images have their logits upsampled at a time."""
    return max(1, LOGITS // (classes * size[0] * size[1]))


def mean_iou(values: dict[int, float]) -> float:
    """Return the mean over the classes."""
    return math.fsum(values.values()) / len(values)
