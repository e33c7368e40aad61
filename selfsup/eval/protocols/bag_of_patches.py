"""Bag of patches: the mean feature of many small patches of each image, as EMP-SSL judges its networks.

An image is not shown whole: a quarter of its area is cut out at many places, each patch is brought to the size of the
image, and the mean of their features stands for it. It costs as many passes as there are patches. Tong et al.,
"EMP-SSL: Towards Self-Supervised Learning in One Training Epoch", 2023; the authors' code (tsb0601/EMP-SSL, 8fc3758)
takes 128 patches and the head's first hidden layer.

Deviation: the places are the same in all images, drawn with the seed, and colours stay; the authors cut and distort
every image by itself, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.eval.cropping import BILINEAR
from selfsup.eval.linear import ProbeSetting, linear_probe
from selfsup.eval.probing import Parts, ProbeResult, feature_probe
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.stages import head_steps
from selfsup.eval.subject import Subject, extract_splits
from selfsup.eval.voting import knn_grid
from selfsup.settings import setting

K, TEMPERATURE = 20, 0.07  # as the authors vote


@dataclass
class BagOfPatchesSettings:
    """What is averaged.

    Attributes:
        patches: Patches of each image; the time grows with it.
        scale: Share of the image's area that a patch shows; a square of a square image.
        layer: ``backbone``, the network's own feature, or ``head``, the first hidden layer of the head on it.
    """

    patches: int = setting(128, least=1)
    scale: float = setting(0.25, above=0, most=1)
    layer: str = setting("backbone", choices=("backbone", "head"))


@protocol(
    "bag_of_patches",
    BagOfPatchesSettings,
    needs=("network", "labels"),
    by_name=True,
    shown=("classifier", "layer", "patches"),
)
def evaluate(subject: Subject, settings: BagOfPatchesSettings) -> Iterator[Record]:
    """Accuracy of kNN and of a linear probe on the mean feature of many patches of each image.

    kNN has k = 20 and temperature 0.07. The linear probe has the grid of ``linear_probe`` at its defaults, and chooses
    on the hold-out.
    """
    first = None if settings.layer == "backbone" else first_layer(subject.head)
    bag = PatchBag(subject.network, settings.patches, settings.scale, subject.seed, first)
    features = extract_splits(replace(subject.encoder, network=bag), subject.splits)
    split, scored = features.scored
    how = {"layer": settings.layer, "patches": settings.patches, "scale": settings.scale}
    (result,) = knn_grid(features.train, scored, [K], [TEMPERATURE], weights=("distance",))
    votes = {"classifier": "knn", "k": K, "temperature": TEMPERATURE}
    yield Record(split=split, metric="top1", value=result.accuracy, how={**votes, **how, **features.how})

    def probe(train: Parts, test: Parts, holdout: Parts | None, seed: int) -> ProbeResult[ProbeSetting]:
        where, progress = subject.encoder.device, subject.encoder.progress
        return linear_probe(train, test, holdout=holdout, seed=seed, device=where, progress=progress)

    record = feature_probe(subject, {"bag": features}, {"features": "standardised"}, probe)
    yield replace(record, how={"classifier": "linear", **how, **record.how})


class PatchBag(nn.Module):
    """A network whose output is the mean of its features of patches of the images.

    Args:
        network: Maps float ``[B,C,H,W]`` to ``[B,D]``.
        patches: How many.
        scale: Share of the area of the images that each shows.
        seed: Of the places, which are the same in all images.
        first: What follows the network on each patch, before the mean; None is nothing.
    """

    def __init__(
        self, network: nn.Module, patches: int, scale: float, seed: int, first: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network, self.first, self.side = network, first, math.sqrt(scale)
        self.normalization = getattr(network, "normalization", None)
        self.in_channels = getattr(network, "in_channels", None)
        self.places = torch.rand(patches, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[B,D]``."""
        height, width = images.shape[-2:]
        rows, columns = (max(1, round(self.side * whole)) for whole in (height, width))
        total: Tensor | None = None
        for down, right in self.places.tolist():
            top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
            patch = images[..., top : top + rows, left : left + columns]
            feature = self.network(F.interpolate(patch, (height, width), **BILINEAR))
            feature = feature if self.first is None else self.first(feature)
            total = feature if total is None else total + feature
        return cast(Tensor, total) / len(self.places)


def first_layer(head: Any) -> nn.Module:
    """Return a head up to its first hidden activation.

    Raises:
        UserError: There is no head, or none with a hidden layer.
    """
    hidden = [] if head is None else head_steps(head)
    if not hidden:
        raise UserError(
            "eval.bag_of_patches.layer=head: this checkpoint has no head with a hidden layer; take layer=backbone."
        )
    children = list(head.children())
    return nn.Sequential(*children[: children.index(hidden[0]) + 1])
