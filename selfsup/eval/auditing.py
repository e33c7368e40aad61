"""Images that deserve a second look: near-duplicates, and labels that the neighbours contradict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsup.data.base import ImageDataset
from selfsup.data.files import FileDataset
from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet, check_finite
from selfsup.eval.neighbours import search_others
from selfsup.tables import csv_table
from selfsup.writing import replacing

TRUSTED = 0.75  # least agreement at which a contradicted label is rather wrong than the features weak
NEAR = 0.1  # share of the usual distance below which two images are near-duplicates

COLUMNS = (
    "finding",
    "image",
    "split",
    "index",
    "label",
    "other_image",
    "other_split",
    "other_index",
    "other_label",
    "similarity",
    "votes_against",
    "suggested_label",
)


@dataclass(frozen=True)
class Duplicate:
    """Two images that are nearly the same.

    Attributes:
        first, second: Rows of the features, ``first < second``.
        similarity: Cosine.
    """

    first: int
    second: int
    similarity: float


@dataclass(frozen=True)
class LabelError:
    """An image whose label is probably wrong.

    Attributes:
        row: Row of the features.
        label, suggested: The label it has, and the one with the most votes.
        against: Share of the votes for other labels than its own.
        support: Share of the votes for the suggested one.
        neighbours: Rows of its neighbours, nearest first.
        similarity: Their cosines.
    """

    row: int
    label: int
    suggested: int
    against: float
    support: float
    neighbours: tuple[int, ...]
    similarity: tuple[float, ...]


@dataclass(frozen=True)
class Audit:
    """What was found, and how far it can be trusted.

    Attributes:
        duplicates: The most similar first.
        label_errors: The clearest first.
        duplicate_similarity: From which cosine on two images are called duplicates.
        agreement: Share of the labelled images whose label no other one is ahead of; None without labels.
    """

    duplicates: list[Duplicate]
    label_errors: list[LabelError]
    duplicate_similarity: float
    agreement: float | None = None

    @property
    def doubt(self) -> str:
        """A sentence where the features are too weak to call labels wrong, or ""."""
        if self.agreement is None or self.agreement >= TRUSTED:
            return ""
        return (
            f"The neighbours agree with the label of {100 * self.agreement:.0f} % of the images only: these features "
            f"are too weak to call labels wrong; most of the {len(self.label_errors)} that are named will be right. "
            "Take a network that knows such images better."
        )


def audit(
    features: Tensor,
    labels: Tensor | None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    duplicate_similarity: float | None = None,
    **settings: Any,
) -> Audit:
    """Look for near-duplicates and label errors; one search of each image's nearest others serves both.

    Two images are near-duplicates when their cosine similarity is ``duplicate_similarity`` or more; of one image at
    most ``k`` are found. A label is probably wrong when, of the votes ``exp(s/T)`` of the ``k`` nearest other images,
    more than half are against it, and another label has more than its own and at least as many as that label gets from
    the neighbours of its own images on average, as in confident learning (Northcutt, Jiang and Chuang 2021). Images
    without a label neither vote nor are judged.

    Args:
        features: float ``[N,D]``, at least two rows.
        labels: int64 ``[N]``, -1 where there is none; or None.
        k: Number of neighbours; all others where there are fewer.
        temperature: ``T``.
        duplicate_similarity: Above -1, at most 1. None follows the features: a distance ``1 - s`` of at most a tenth of
            the usual one, the median over the images of that to the ``k``-th neighbour.
        settings: Of ``selfsup.eval.search``: ``index`` and others.

    Raises:
        UserError: A setting outside its range, fewer than two images, or features that are not finite.
    """
    if k < 1:
        raise UserError(f"eval.knn.k is {k}; set it to at least 1 neighbour.")
    if temperature <= 0:
        raise UserError(f"eval.knn.temperatures: {temperature} is not a temperature; set one above 0.")
    if duplicate_similarity is not None and not -1 < duplicate_similarity <= 1:
        raise UserError(
            f"eval.duplicate_similarity is {duplicate_similarity}; set a cosine similarity above -1 and at most 1."
        )
    if len(features) < 2:
        raise UserError(f"neighbours: at least two images are needed and there are {len(features)}; add images.")
    check_finite(features, "features")
    similarity, position = search_others(features, min(k, len(features) - 1), **settings)
    if duplicate_similarity is None:
        duplicate_similarity = 1 - NEAR * float((1 - similarity[:, -1].double()).median())
    errors, agreement = ([], None) if labels is None else _label_errors(similarity, position, labels, temperature)
    return Audit(_duplicates(similarity, position, duplicate_similarity), errors, duplicate_similarity, agreement)


def audit_dataset(
    parts: Sequence[tuple[FeatureSet, ImageDataset]], folder: str | Path, **settings: Any
) -> tuple[Audit, AuditedImages, Path]:
    """Look through all parts of a dataset at once, and write a table of what was found.

    Args:
        parts: Features and images of each part; labels count where a part has them.
        folder: Receives ``neighbours.csv``, a row for every finding.
        settings: The keywords of ``audit``.

    Returns:
        The findings, whose rows count through the parts in their order, the images by their row, and the table.

    Raises:
        UserError: As ``audit``.
    """
    images = AuditedImages(parts)
    found = audit(torch.cat([part.features for part, _ in parts]), images.labels, **settings)
    path = Path(folder) / "neighbours.csv"
    rows = ([row.get(column) for column in COLUMNS] for row in _csv_rows(found, images))
    with replacing(path) as draft:
        draft.write_text(csv_table(COLUMNS, rows), "utf-8", newline="")
    return found, images, path


class AuditedImages:
    """The images of several parts by their row in the joined features.

    Attributes:
        labels: int64 ``[N]``, -1 where there is none.
        classes: Their names, or None.
    """

    def __init__(self, parts: Sequence[tuple[FeatureSet, ImageDataset]]) -> None:
        self._parts = parts
        self.labels = torch.cat([_labels(found) for found, _ in parts])
        self._where = [(part, row) for part, (found, _) in enumerate(parts) for row in range(len(found))]
        self.classes = next((dataset.classes for _, dataset in parts if dataset.classes is not None), None)
        # extraction leaves out what cannot be decoded, so rows are found by their stable index
        self._positions = [
            {index: position for position, index in enumerate(dataset.index.tolist())} for _, dataset in parts
        ]

    def read(self, row: int) -> Tensor:
        """Return the image ``[C,H,W]``, as it is stored."""
        dataset, _, position = self._find(row)
        return dataset.read(torch.tensor([position]))[0]

    def describe(self, row: int) -> tuple[str, str, int]:
        """Return file (or split and index, for images that are no files), split and index."""
        dataset, index, position = self._find(row)
        file = str(dataset.path(position)) if isinstance(dataset, FileDataset) else f"{dataset.split}/{index}"
        return file, dataset.split, index

    def class_name(self, label: int) -> str:
        """Return the name of a label, empty for none."""
        if label < 0:
            return ""
        return self.classes[label] if self.classes is not None and label < len(self.classes) else str(label)

    def _find(self, row: int) -> tuple[ImageDataset, int, int]:
        part, at = self._where[row]
        found, dataset = self._parts[part]
        index = int(found.index[at])
        return dataset, index, self._positions[part][index]


def _duplicates(similarity: Tensor, position: Tensor, least: float) -> list[Duplicate]:
    near = similarity >= least
    rows = torch.arange(len(position))[:, None].expand_as(position)[near]
    others, cosines = position[near], similarity[near]
    # a pair may be found from either side; rounding may put it above the threshold on one side only
    pairs: dict[tuple[int, int], float] = {}
    for row, other, cosine in zip(rows.tolist(), others.tolist(), cosines.tolist(), strict=True):
        pair = (min(row, other), max(row, other))
        pairs[pair] = max(cosine, pairs.get(pair, -1.0))
    return [Duplicate(*pair, cosine) for pair, cosine in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))]


def _label_errors(
    similarity: Tensor, position: Tensor, labels: Tensor, temperature: float
) -> tuple[list[LabelError], float | None]:
    """Return the errors, and the share of the labelled images that their neighbours agree with."""
    votes = ((similarity - similarity[:, :1]).double() / temperature).exp() * (labels[position] >= 0)
    shares = votes / votes.sum(1, keepdim=True).clamp_min(torch.finfo(votes.dtype).tiny)
    own = (shares * (labels[position] == labels[:, None])).sum(1)
    judged = (labels >= 0) & (votes.sum(1) > 0)
    if not judged.any():
        return [], None
    against = (shares * (labels[position] != labels[:, None])).sum(1)
    usual = {label: float(own[judged & (labels == label)].mean()) for label in torch.unique(labels[judged]).tolist()}
    errors = []
    disagreeing = 0
    # where no more than half are against it, no other label can be ahead
    for row in ((against > 0.5) & judged).nonzero().flatten().tolist():
        classes, which = torch.unique(labels[position[row]], return_inverse=True)
        total = torch.zeros(len(classes), dtype=torch.float64).scatter_add_(0, which, shares[row])
        best = int(total.argmax())
        suggested, support = int(classes[best]), float(total[best])
        if support <= float(total[classes == labels[row]].sum()):
            continue
        disagreeing += 1
        if support >= usual.get(suggested, 0.0):
            near = (tuple(position[row].tolist()), tuple(similarity[row].tolist()))
            errors.append(LabelError(row, int(labels[row]), suggested, float(against[row]), support, *near))
    errors.sort(key=lambda error: (-error.support, error.row))
    return errors, 1 - disagreeing / int(judged.sum())


def _csv_rows(found: Audit, images: AuditedImages) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def both(first: int, second: int, similarity: float) -> dict[str, object]:
        row: dict[str, object] = {"similarity": round(similarity, 6)}
        for prefix, at in (("", first), ("other_", second)):
            file, split, index = images.describe(at)
            row |= {f"{prefix}image": file, f"{prefix}split": split, f"{prefix}index": index}
            row[f"{prefix}label"] = images.class_name(int(images.labels[at]))
        return row

    for pair in found.duplicates:
        rows.append({"finding": "duplicate"} | both(pair.first, pair.second, pair.similarity))
    for error in found.label_errors:
        # beside it the nearest image that has the suggested label
        at = next(i for i, row in enumerate(error.neighbours) if int(images.labels[row]) == error.suggested)
        row = both(error.row, error.neighbours[at], error.similarity[at])
        row |= {"votes_against": round(error.against, 6), "suggested_label": images.class_name(error.suggested)}
        rows.append({"finding": "label"} | row)
    return rows


def _labels(found: FeatureSet) -> Tensor:
    return torch.full((len(found),), -1) if found.labels is None else found.labels
