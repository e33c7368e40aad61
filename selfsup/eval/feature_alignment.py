"""Whether a rotation turns the features of one network into those of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.data.base import ImageDataset, Splits
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder
from selfsup.eval.subject import evenly
from selfsup.functional.procrustes import orthogonal_map

IMAGES = 5000  # of either part


@dataclass(frozen=True)
class Aligned:
    """What a closed-form rotation makes of the features of one network, on images that it was not fitted on.

    Attributes:
        source, target: Names of the networks.
        cosine: Mean cosine of a rotated feature with the target's feature of the same image.
        other: Mean cosine with the target's features of other images.
        matched: Share of images whose rotated feature is nearest to the target's feature of the same image.
        images: Number of images; 1 / images is chance for ``matched``.
        fitted_on: Number of images that the rotation was fitted on.
        own_cosines, other_cosines: float ``[N]``: of the same image, and of the next one, for the picture.
    """

    source: str
    target: str
    cosine: float
    other: float
    matched: float
    images: int
    fitted_on: int
    own_cosines: Tensor
    other_cosines: Tensor


def align(encoders: Mapping[str, Encoder], splits: Splits, images: int = IMAGES) -> list[Aligned]:
    """Rotate the features of every network onto those of every other, in closed form, and look how close they come.

    Features are centred by the training images and L2-normalised; the rotation is fitted on training images, see
    ``orthogonal_map``, and judged on the test images, or the hold-out where there are none.

    Args:
        encoders: Networks by name.
        splits: Images; labels are not read.
        images: Most images of either part, spaced evenly.

    Raises:
        UserError: Fewer than two networks, or too few images.
    """
    if len(encoders) < 2:
        raise UserError("cka: name at least two runs.")
    fitted, judged = (evenly(part, images) for part in (splits.train, _scored(splits)))
    found = {name: _features(encoder, fitted, judged) for name, encoder in encoders.items()}
    return [
        _aligned((source, target), found[source], found[target])
        for source in encoders
        for target in encoders
        if source != target
    ]


def _scored(splits: Splits) -> ImageDataset:
    scored = splits.test if splits.test is not None else splits.holdout
    if len(scored) < 2:
        raise UserError("data.holdout: there are fewer than two images to judge a rotation on; set some aside (0.1).")
    return scored


def _features(encoder: Encoder, fitted: ImageDataset, judged: ImageDataset) -> tuple[Tensor, Tensor]:
    train, test = (encoder.features(part).features.double() for part in (fitted, judged))
    mean = train.mean(0)
    return F.normalize(train - mean, dim=1), F.normalize(test - mean, dim=1)


def _aligned(names: tuple[str, str], source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Aligned:
    rotated = F.normalize(source[1] @ orthogonal_map(source[0], target[0]), dim=1)
    cosines = rotated @ target[1].T
    count = len(cosines)
    own = cosines.diagonal()
    nearest = cosines.argmax(1) == torch.arange(count)
    other = (cosines.sum() - own.sum()) / (count * (count - 1))
    return Aligned(
        names[0],
        names[1],
        own.mean().item(),
        other.item(),
        nearest.double().mean().item(),
        count,
        len(source[0]),
        own.clone(),
        cosines.roll(1, 1).diagonal().clone(),
    )
