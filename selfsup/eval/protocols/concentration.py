"""Whether an augmentation gathers the images of a class, and keeps classes apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.eval.features import check_finite, join_labels, labels_of
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly
from selfsup.eval.viewing import augmented, recipe_name
from selfsup.functional.concentration import augmented_distance, class_overlap, misaligned_share
from selfsup.settings import setting

PIXELS = 32  # side to which views are reduced before their pixels are compared
CURVE_POINTS = 33


@dataclass
class ConcentrationSettings:
    """Which augmentation is judged, and on what.

    Attributes:
        recipe: Name of the recipe whose views are drawn; None is SimCLR's for the size of the images.
        images: Most images that are augmented.
        views: Views of each image. The more, the nearer the distances come to their minimum over all views.
        epsilon: Distance of normalised features from which two views of an image count as not aligned.
    """

    recipe: str | None = None
    images: int = setting(512, least=4)
    views: int = setting(4, least=2)
    epsilon: float = setting(0.5, above=0.0)


@protocol("concentration", ConcentrationSettings, needs=("network", "labels"), shown=("space",))
def evaluate(subject: Subject, settings: ConcentrationSettings) -> Iterator[Record]:
    """Concentration of augmented images by class, and alignment and divergence of their features.

    The three quantities by which Huang et al. (arXiv:2111.00743) bound the error of a nearest-centre classifier, as
    they can be measured on drawn views; how the first is measured is not from the paper, whose formula alone was at
    hand.

    - ``concentration``: share of images whose nearest other image, when both are augmented, has the same class, in the
      space of the ``pixels`` (reduced to 32 a side) and of the ``features``. ``chance`` is what other images would
      give, ``curve`` the share of pairs of one class and of two classes within a distance.
    - ``misaligned``: share of images of which two views have features more than ``epsilon`` apart.
    - ``overlap``: mean inner product of the centres of two classes; ``largest`` is that of the worst pair, ``centres``
      the whole table.

    Images of the hold-out are used, or training images where there is none.
    """
    split = "holdout" if len(subject.splits.holdout) >= 4 else "train"
    images = evenly(getattr(subject.splits, split), settings.images)
    recipe = recipe_name(settings.recipe, images.image_size, "eval.concentration.recipe")
    classes, counts = torch.unique(labels_of(images), return_counts=True)
    if len(classes) < 2 or counts.max() < 2:
        raise UserError("eval.concentration.images: two images of one class and two classes are needed; take more.")
    pixels: list[Tensor] = []
    features: list[Tensor] = []
    labels: list[Tensor | None] = []  # of what could be decoded
    found = augmented(subject.encoder, subject.network, images, recipe, settings.views, subject.seed)
    with found as batches:
        for views, batch in batches:
            labels.append(batch.label)
            pixels.append(torch.stack([_small(view.image.float()).flatten(1).cpu() for view in views], 1))
            features.append(torch.stack([subject.network(view.image).float().cpu() for view in views], 1))
    spaces = {"pixels": torch.cat(pixels), "features": F.normalize(torch.cat(features), dim=2)}
    check_finite(spaces["features"].flatten(1), f"features of augmented images of '{images.name}'")
    known = join_labels(labels)
    assert known is not None  # labels_of has looked
    how = {"recipe": recipe, "images": len(known), "views": settings.views}
    chance = (counts * (counts - 1)).sum().item() / (len(images) * (len(images) - 1))
    for space, points in spaces.items():
        distance = augmented_distance(points)
        own = {"chance": chance, "curve": _curve(distance, known)}
        nearest = distance.fill_diagonal_(torch.inf).argmin(1)
        value = torch.eq(known[nearest], known).double().mean().item()
        place = {"space": space, **how}
        yield Record(split=split, metric="concentration", value=value, unit=FRACTION, how=place, found=own)
    how |= {"space": "features", "dim": features[0].shape[2]}
    epsilon = settings.epsilon
    value = misaligned_share(spaces["features"], epsilon).item()
    yield Record(split=split, metric="misaligned", value=value, unit=FRACTION, how=how | {"epsilon": epsilon})
    table = class_overlap(spaces["features"], known)
    apart = table[~torch.eye(len(table), dtype=torch.bool)]
    own = {"largest": apart.max().item(), "classes": torch.unique(known).tolist(), "centres": table.tolist()}
    yield Record(split=split, metric="overlap", value=apart.mean().item(), how=how, found=own)


def _small(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, (min(PIXELS, images.shape[2]), min(PIXELS, images.shape[3])))


def _curve(distance: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Return distances and, for each, the share of pairs of one class and of two classes that are within it."""
    row, column = torch.triu_indices(len(distance), len(distance), 1)
    pairs, same = distance[row, column].double(), labels[row] == labels[column]
    at = torch.linspace(0, pairs.max().item(), CURVE_POINTS, dtype=torch.float64)
    within = [(kind[None] <= at[:, None]).double().mean(1).tolist() for kind in (pairs[same], pairs[~same])]
    return {"distance": at.tolist(), "same": within[0], "other": within[1]}
