"""Images with several labels or real values: their tables beside the features, and average precision."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfsup.data.base import ImageDataset
from selfsup.data.targets import Targets, has_targets
from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet, check_finite, check_widths
from selfsup.eval.subject import Subject

WORDS = {"multilabel": "several labels an image", "real": "real values"}


@dataclass(frozen=True)
class TargetParts:
    """Features of the parts of a source with tables of their targets in place of classes.

    Attributes:
        split, scored: Name and features of the images that numbers are reported on.
        train: Features to learn from.
        holdout: Features for choices, or None: there are none, or they are what is scored.
        names: Of the targets.
        how: What records say of them.
    """

    split: str
    scored: FeatureSet
    train: FeatureSet
    holdout: FeatureSet | None
    names: tuple[str, ...]
    how: dict[str, Any]


def check_kind(images: ImageDataset, kind: str) -> Targets:
    """Return the targets of images.

    Raises:
        UserError: They are not of this kind.
    """
    if images.targets is None or images.targets.kind != kind:
        there = "classes" if images.labels is not None else "no labels"
        there = there if images.targets is None else WORDS[images.targets.kind]
        raise UserError(
            f"data.targets: {WORDS[kind]} are needed and the images have {there}; name a table that has them "
            f"(data.labels, data.label_column) and set data.targets={kind}."
        )
    return images.targets


def with_targets(features: FeatureSet, images: ImageDataset) -> FeatureSet:
    """Return features with the targets of their images as ``labels``; images of which nothing is known are left out.

    Args:
        features: Of these images, or some of them.
        images: Part of a source that has targets.

    Raises:
        UserError: The source has none, or none of these images has any.
    """
    if images.targets is None:
        raise UserError(
            "data.targets: the images have neither several labels nor real values; name a table (data.labels)."
        )
    table = images.targets.of(features.index)
    known = has_targets(table)
    if not known.any():
        raise UserError(f"data.labels: none of the {len(known)} {images.split} images has targets; give some to them.")
    return FeatureSet(features.features[known], table[known], features.index[known])


def parts_of(subject: Subject, kind: str) -> TargetParts:
    """Return the features of a subject with their targets.

    Raises:
        UserError: The targets are of another kind, or no image of a part has any.
    """
    names = check_kind(subject.splits.train, kind).names
    features = subject.features
    split, scored = features.scored
    train = with_targets(features.train, subject.splits.train)
    held = features.holdout if split == "test" else None
    return TargetParts(
        split,
        with_targets(scored, subject.scored[1]),
        train,
        None if held is None else with_targets(held, subject.splits.holdout),
        names,
        dict(features.how) | {"targets": kind},
    )


def label_table(part: FeatureSet, name: str) -> Tensor:
    """Return bool ``[N,C]``, which labels the images of a part have.

    Raises:
        UserError: There is no such table.
    """
    if part.labels is None or part.labels.ndim != 2:
        raise UserError(f"The {name} labels are not a table of images and classes; give [N,C] labels of 0 and 1.")
    if len(part) == 0:
        raise UserError(f"The {name} features are empty; there is nothing to evaluate.")
    if not ((part.labels == 0) | (part.labels == 1)).all():
        raise UserError(f"The {name} labels hold other values than 0 and 1; give 1 for each class that an image has.")
    return part.labels.bool()


def check_tables(train: Tensor, test: Tensor) -> None:
    """Raise a UserError unless two tables have the same labels, of which a test image has one."""
    if train.shape[1] != test.shape[1]:
        raise UserError(
            f"The train labels have {train.shape[1]} classes and the test labels {test.shape[1]}; "
            "give both one column for every class."
        )
    if not test.any():
        raise UserError("No test image has any class; evaluate on images of which some have one.")


def standardised(train: FeatureSet, *others: FeatureSet) -> list[Tensor]:
    """Return the features of parts in float64 with the mean and deviation of the first taken off.

    Raises:
        UserError: Widths that differ, or features that are not finite.
    """
    for part in (train, *others):
        check_widths(train, part)
        check_finite(part.features, "features")
    mean, std = train.features.double().mean(0), train.features.double().std(0, correction=0)
    # a dimension that is constant in training says nothing, and its rounding noise must not be blown up
    used = std > 1e-6 * std.max()
    scale = torch.where(used, 1 / std.where(used, torch.ones_like(std)), torch.zeros_like(std))
    return [(part.features.double() - mean) * scale for part in (train, *others)]


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """Return the average precision of each column: ``Σ_n (R_n - R_{n-1}) P_n`` over the thresholds of its scores.

    Images with equal scores share a threshold, so that their order says nothing; there is no interpolation. Both are as
    in scikit-learn's ``average_precision_score``.

    Args:
        scores: float ``[N,C]``.
        truth: bool ``[N,C]``.

    Returns:
        float64 ``[C]``; NaN where no image has the label.
    """
    count = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    found = []
    for column, own in zip(scores.T, truth.T, strict=True):  # one at a time, as the order of all would fill memory
        ordered, order = column.sort(descending=True)
        hits = own[order].double().cumsum(0)
        last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])  # of those with equal scores
        right, seen = hits[last], count[last]
        gained = torch.diff(right, prepend=right.new_zeros(1))
        found.append((gained * right / seen).sum() / right[-1])
    return torch.stack(found)


def precision_by_name(values: Mapping[int, float], names: Sequence[str]) -> dict[str, float]:
    """Return average precisions by the name of the label, and say which have no scored image."""
    absent = [name for place, name in enumerate(names) if place not in values]
    if absent:
        warnings.warn(
            f"{len(absent)} labels have no scored image and count nowhere, {absent[0]} for one.", stacklevel=2
        )
    return {names[place]: value for place, value in values.items()}
