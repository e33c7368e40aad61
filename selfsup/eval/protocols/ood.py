"""Out-of-distribution detection: whether other images lie farther from the training images than test images do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsup.data.base import ImageDataset
from selfsup.data.encoded import EncodedConfig
from selfsup.data.splits import load_splits
from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet, check_finite, check_widths
from selfsup.eval.neighbours import search
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly
from selfsup.eval.voting import at_most, search_settings
from selfsup.registry import nearest, sources
from selfsup.settings import setting

KEPT = 0.95  # share of the test images that must pass


@dataclass
class OodSettings:
    """What the test images are told apart from, and how.

    Attributes:
        data: The other source, by name (``svhn``), or a folder of images.
        root: Where the source lies; None is where its documentation says.
        k: Numbers of neighbours: the score is the distance to the k-th; the first gives *the* number.
        images: Most images of the other source, spaced evenly; None is all.
    """

    data: str | None = None
    root: str | None = None
    k: list[int] = setting([50], least=1)
    images: int | None = setting(10_000, least=1)


@protocol("ood", OodSettings, by_name=True, shown=("other", "k"))
def evaluate(subject: Subject, settings: OodSettings) -> Iterator[Record]:
    """AUROC and false positive rate by the distance to the k-th nearest training image; set eval.ood.data."""
    other = _other(subject, settings)  # first, as what is wrong with the settings is found there
    features = subject.features
    split, inside = features.scored
    outside = subject.encoder.features(other)
    found = ood_scores(features.train, inside, outside, settings.k, **search_settings(subject.config))
    for k, (near, far) in zip(settings.k, found, strict=True):
        how: dict[str, Any] = {"other": settings.data, "other_split": other.split, "other_images": len(outside), "k": k}
        how |= {"index": subject.config.index, "primary": k == settings.k[0], **features.how}
        for metric, value in (("auroc", auroc(near, far)), ("fpr95", false_positives(near, far))):
            yield Record(split=split, metric=metric, value=value, unit=FRACTION, how=how)


def _other(subject: Subject, settings: OodSettings) -> ImageDataset:
    """Return the images of the other source: its test images, or all of its images where it has no test images.

    Files are read as those of the run are: their channels, depth and range of values (``data.channels``,
    ``data.depth``, ``data.value_range``).
    """
    if settings.data is None:
        raise UserError("eval.ood.data is not set; set it to a source (svhn) or a folder of images.")
    folder = Path(settings.data).expanduser()
    own = subject.splits.train
    given: dict[str, Any] = {"image_size": own.image_size, "holdout": 0.0, "labelled": False}
    if settings.data in sources:
        name = settings.data
        given |= {"root": settings.root} if settings.root is not None else {}
    elif folder.is_dir():
        name = "image_folder"
        given |= {"root": str(folder), "test_fraction": 0.0}
    else:
        raise UserError(
            f"eval.ood.data: {settings.data} is neither a source nor a folder.{nearest(settings.data, list(sources))}"
        )
    kind = sources[name].config
    if issubclass(kind, EncodedConfig):  # the network sees the other files as it saw its own
        given |= {"channels": own.channels}
        if own.form is not None:
            given |= {"depth": own.form.depth, "channel_axis": own.form.channel_axis}
            given |= {"value_range": None if own.form.value_range is None else list(own.form.value_range)}
    config = kind(**given)
    if len(own.normalization.mean) == len(config.mean) or issubclass(kind, EncodedConfig):
        config.mean, config.std = list(own.normalization.mean), list(own.normalization.std)
    splits = load_splits(config)
    images = splits.pretrain if splits.test is None else splits.test
    return images if settings.images is None else evenly(images, settings.images)


def ood_scores(
    train: FeatureSet, inside: FeatureSet, outside: FeatureSet, ks: Sequence[int] = (50,), **settings: Any
) -> list[tuple[Tensor, Tensor]]:
    """Return for each ``k`` the distances of two sets of images to their k-th nearest training image.

    Features are normalised; the distance is ``1 - cosine``, which orders images as the Euclidean distance does (Sun et
    al., "Out-of-distribution detection with deep nearest neighbors", arXiv:2204.06507). A ``k`` above the number of
    training images is cut to it, with a warning.

    Args:
        train: What is known.
        inside, outside: Images like those, and others.
        ks: Numbers of neighbours.
        settings: Of ``selfsup.eval.search``.

    Raises:
        UserError: Nothing to score, different widths, features that are not finite, a bad ``k``.
    """
    if not ks or min(ks) < 1:
        raise UserError("eval.ood.k: give at least one number of neighbours, each at least 1.")
    for name, part in (("train", train), ("test", inside), ("other", outside)):
        if not len(part):
            raise UserError(f"The {name} features are empty; there is nothing to evaluate.")
        check_widths(train, part)
        check_finite(part.features, f"{name} features")
    used = at_most(max(ks), len(train))
    near, far = (1 - search(train.features, part.features, used, **settings)[0].double() for part in (inside, outside))
    return [(near[:, min(k, used) - 1], far[:, min(k, used) - 1]) for k in ks]


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return the share of pairs in which the image from outside scores higher; equal scores count half.

    Args:
        inside, outside: Scores ``[N]`` and ``[M]``.
    """
    ordered = inside.double().sort().values
    scores = outside.double().contiguous()
    below = torch.searchsorted(ordered, scores).double() + torch.searchsorted(ordered, scores, right=True).double()
    return (below.sum() / (2 * len(inside) * len(outside))).item()


def false_positives(inside: Tensor, outside: Tensor, kept: float = KEPT) -> float:
    """Return the share of outside images that pass where the lowest threshold lets 95 % of the inside images pass.

    An image passes whose score is at most the threshold.
    """
    place = max(0, -(-round(kept * 100) * len(inside) // 100) - 1)
    return (outside <= inside.sort().values[place]).double().mean().item()
