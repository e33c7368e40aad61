"""Features of the images of a split, and what must hold of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.functional.arguments import LARGE, kind
from selfsup.shortage import machine_lacks_memory
from selfsup.writing import replacing


@dataclass(frozen=True)
class FeatureSet:
    """Features of the images of one split, in the order of the dataset.

    Attributes:
        features: float32 ``[N,D]`` on the CPU, as the network gives them (not normalised).
        labels: int64 ``[N]``, or None when the source has none. A missing label is -1. Functions for several labels
            an image take a table ``[N,C]`` of 0 and 1 in their place, those for real targets floats ``[N,T]``.
        index: int64 ``[N]``, the stable position of each image in its source split; their order where it is left out.
    """

    features: Tensor
    labels: Tensor | None = None
    index: Tensor = field(default=cast(Tensor, None))  # replaced below

    def __post_init__(self) -> None:
        if not isinstance(self.features, Tensor) or not self.features.is_floating_point() or self.features.ndim != 2:
            raise UserError(f"The features of images must be a tensor of floats [N,D], got {kind(self.features)}.")
        if self.features.is_meta or self.features.layout != torch.strided:
            raise UserError(f"The features of images must be a plain tensor with values, got {kind(self.features)}.")
        if cast(Any, self.index) is None:
            object.__setattr__(self, "index", torch.arange(len(self.features)))
        for name, values in (("labels", self.labels), ("index", self.index)):
            if values is None:
                continue
            plain = isinstance(values, Tensor) and values.shape[:1] == self.features.shape[:1] and not values.is_meta
            table = plain and name == "labels" and values.ndim == 2  # of several labels an image, looked at where used
            if not plain or (not table and (values.ndim > 1 or values.is_floating_point() or values.is_complex())):
                raise UserError(
                    f"The {name} of {len(self.features)} features must be whole numbers [{len(self.features)}], got "
                    f"{kind(values)}."
                )
            if values.dtype == torch.bool and not table:
                raise UserError(f"The {name} of features must be whole numbers, got {kind(values)}.")

    def __len__(self) -> int:
        return len(self.features)

    def save(self, path: str | Path) -> None:
        """Write the set to one file; an interrupted write leaves the old file as it was."""
        write_content(vars(self), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> FeatureSet:
        """Read a set that ``save`` wrote.

        Raises:
            UserError: The file is missing or holds something else.
        """
        content = read_content(Path(path))
        return cls(content["features"], content["labels"], content["index"])


def labelled(part: FeatureSet) -> FeatureSet:
    """Return the images of a part that have a label."""
    if part.labels is None:
        return FeatureSet(part.features[:0], None, part.index[:0])
    known = part.labels >= 0
    return part if bool(known.all()) else FeatureSet(part.features[known], part.labels[known], part.index[known])


def known_labels(part: FeatureSet, name: str) -> Tensor:
    """Return the labels of a part.

    Raises:
        UserError: There is no label for some or all of the images.
    """
    if len(part) == 0:
        raise UserError(f"The {name} features are empty; there is nothing to evaluate.")
    if part.labels is not None and part.labels.ndim != 1:
        raise UserError(
            f"The {name} labels are a table, {kind(part.labels)}, and one class an image is needed; evaluate tables "
            "with knn_multilabel, multilabel_probe or regression."
        )
    missing = len(part) if part.labels is None else int((part.labels < 0).sum())
    if part.labels is None or missing:
        raise UserError(
            f"The {name} features have no label for {missing} of {len(part)} images; "
            "evaluate on labelled images, or leave the unlabelled ones out."
        )
    return part.labels


def tell_absent(labels: Tensor, known: Tensor, name: str) -> None:
    """Warn of classes of a part that no training image has: they count as errors."""
    absent = torch.unique(labels[~torch.isin(labels, known)]).tolist()
    if absent:
        which = f"{absent[:10]}" + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        warnings.warn(
            f"Classes of the {name} features have no training image and count as errors: {which}", stacklevel=3
        )


def check_finite(features: Tensor, what: str) -> None:
    """Raise a UserError that counts the rows with NaN or infinity."""
    if torch.isfinite(features.sum()):
        return  # no NaN and no infinity can hide in a finite sum, and a sum takes a tenth of the time of looking
    bad = int((~torch.isfinite(features).all(1)).sum())
    if bad:
        raise UserError(
            f"The {what} are NaN or infinite for {bad} of {len(features)} images; the network has diverged, so "
            "evaluate an earlier checkpoint or train with a lower learning rate."
        )


def unit_rows(features: Tensor) -> Tensor:
    """Return the rows ``[N,D]`` L2-normalised, float32 on the CPU; a row of zeros stays.

    Rows whose squares overflow float32 are brought to its range first.
    """
    rows = features.detach().cpu()
    if rows.numel():
        low, high = rows.aminmax()
        largest = max(-float(low), float(high))
        if largest > LARGE:
            rows = rows.double()
            rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return F.normalize(rows.float(), dim=1)


def check_widths(train: FeatureSet, test: FeatureSet) -> None:
    """Raise a UserError unless both parts have features of one width."""
    if train.features.shape[1] != test.features.shape[1]:
        raise UserError(
            f"The train features have {train.features.shape[1]} dimensions and the test features "
            f"{test.features.shape[1]}; extract both with the same backbone."
        )


def take(part: FeatureSet, positions: Tensor) -> FeatureSet:
    """Return some rows of a part."""
    labels = None if part.labels is None else part.labels[positions]
    return FeatureSet(part.features[positions], labels, part.index[positions])


def labels_of(dataset: ImageDataset) -> Tensor:
    """Return the labels of all images.

    Raises:
        UserError: Some or all are missing.
    """
    if dataset.targets is not None:
        own, what = {
            "multilabel": ("multilabel_knn or multilabel_probe", "several labels an image"),
            "real": ("regression", "real values"),
        }[dataset.targets.kind]
        raise UserError(
            f"data.targets: the images have {what} ({', '.join(dataset.targets.names[:5])}) and no classes; run {own} "
            "(--only), or set data.label_column to a column of classes."
        )
    empty = torch.zeros(len(dataset), 0)
    return known_labels(FeatureSet(empty, dataset.labels, dataset.index), dataset.split)


def in_float16(values: Tensor) -> Tensor:
    """Return values for safe keeping in half the memory, float16 on the CPU; those beyond its range are at its end."""
    largest = torch.finfo(torch.float16).max
    return values.clamp(-largest, largest).to("cpu", torch.float16)


def positions_of(images: ImageDataset, index: Tensor) -> Tensor:
    """Return where the images with these stable indices are in the dataset; extraction may have left some out."""
    order = images.index.argsort()
    return order[torch.searchsorted(images.index[order], index)]


def join_labels(labels: list[Tensor | None]) -> Tensor | None:
    """Return the labels of all batches, or None where they have none."""
    present = [label for label in labels if label is not None]
    return torch.cat(present) if present else None


def write_content(content: dict[str, Any], path: Path) -> None:
    """Write a file of features in one step."""
    with replacing(path, "make room, or set eval.cache=false") as draft:
        torch.save(content, draft)


def read_content(path: Path) -> dict[str, Any]:
    """Return what ``write_content`` wrote.

    Raises:
        UserError: The file is missing or holds something else.
    """
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:
        if path.exists() and machine_lacks_memory(error, path.stat().st_size):
            raise
        raise UserError(f"'{path}' cannot be read as a file of features; delete it and extract again.") from error
    if not isinstance(content, dict) or "features" not in content:
        raise UserError(f"'{path}' holds no features; delete it and extract again.")
    return content
