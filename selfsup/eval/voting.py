"""Weighted nearest-neighbour classification: what the features know without any training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.eval.config import EvalConfig
from selfsup.eval.features import FeatureSet, check_finite, check_widths, known_labels, tell_absent
from selfsup.eval.neighbours import recall_of, search, search_others
from selfsup.eval.record import Record
from selfsup.functional.arguments import is_count
from selfsup.settings import setting

QUERIES_AT_ONCE = 1024  # bounds the [queries, classes] table of votes


@dataclass
class KnnSettings:
    """Who votes, and how.

    The accuracy that is reported as *the* kNN accuracy is that of the first of ``k`` and the first of
    ``temperatures``: fixed in advance, so that nothing is chosen on the test images. The other combinations are
    recorded beside it and need no further search.

    Attributes:
        k: Numbers of neighbours.
        temperatures: Of the vote.
    """

    k: list[int] = setting([20, 200], least=1)
    temperatures: list[float] = setting([0.07], above=0)


@dataclass(frozen=True)
class KnnResult:
    """Accuracy of one setting.

    Attributes:
        k: Number of neighbours that was asked for.
        neighbours: Number that voted: ``k``, or the size of the bank where that is smaller.
        weights: ``distance`` (a neighbour of similarity ``s`` has ``exp(s/T)`` votes) or ``uniform`` (one vote).
        temperature: ``T``; None with uniform weights.
        accuracy: Fraction of the test images whose class is right.
        recall: Fraction of the true neighbours among those that voted: 1 for an exact search.
    """

    k: int
    neighbours: int
    weights: str
    temperature: float | None
    accuracy: float
    recall: float = 1.0


def knn(
    train: FeatureSet, test: FeatureSet, k: int | Sequence[int] = (20, 200), temperature: float = 0.07
) -> dict[int, float]:
    """Classify each test image by its nearest training images, and return the accuracy for each ``k``.

    Features are L2-normalised; a class scores ``Σ_{i in top k} 1[y_i = c] exp(s_i / T)`` with the cosine similarity
    ``s`` (Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv:1805.01978; the
    same in DINO). Of classes with equal scores the lowest is taken. A ``k`` above the size of the bank is cut to it,
    with a warning.

    Raises:
        UserError: Missing labels, different widths, features that are not finite, a bad ``k`` or temperature.
    """
    ks = [k] if isinstance(k, int) else list(k)
    return {result.k: result.accuracy for result in knn_grid(train, test, ks, [temperature], weights=("distance",))}


def knn_grid(
    train: FeatureSet,
    test: FeatureSet,
    ks: Sequence[int],
    temperatures: Sequence[float],
    weights: Sequence[str] = ("distance", "uniform"),
    **settings: Any,
) -> list[KnnResult]:
    """Return the accuracy of every ``k`` with every temperature, and with uniform votes: one search serves them all.

    Args:
        train, test: Bank and queries.
        ks, temperatures, weights: What is combined.
        settings: Of ``selfsup.eval.search``: ``index`` and others.

    Raises:
        UserError: As ``knn``.
    """
    _check_votes(ks, temperatures, weights)
    bank_labels, test_labels = known_labels(train, "train"), known_labels(test, "test")
    check_widths(train, test)
    check_finite(train.features, "train features")
    check_finite(test.features, "test features")
    tell_absent(test_labels, bank_labels, "test")
    found = search(train.features, test.features, _at_most(max(ks), len(train)), **settings)
    recall = _recall(found[1], train, test, ks, settings)
    return _accuracies(found, bank_labels, test_labels, ks, temperatures, weights, recall)


def knn_loo(
    data: FeatureSet,
    ks: Sequence[int] = (20, 200),
    temperatures: Sequence[float] = (0.07,),
    weights: Sequence[str] = ("distance",),
    **settings: Any,
) -> list[KnnResult]:
    """Return the leave-one-out accuracies on one set: each image is classified by all the others, in one search.

    As ``knn_grid`` otherwise. An image whose class has no other image cannot be right.

    Args:
        data: At least two labelled images.
        ks, temperatures, weights, settings: As ``knn_grid``.

    Raises:
        UserError: As ``knn``, or there is but one image.
    """
    _check_votes(ks, temperatures, weights)
    labels = known_labels(data, "train")
    if len(data) < 2:
        raise UserError("Leave-one-out kNN needs at least two images and there is one; add labelled images.")
    check_finite(data.features, "train features")
    found = search_others(data.features, _at_most(max(ks), len(data) - 1), **settings)
    recall = _recall(found[1], data, data, ks, settings, others=True)
    return _accuracies(found, labels, labels, ks, temperatures, weights, recall)


@dataclass(frozen=True)
class MultiLabelResult:
    """Average precision of one setting.

    Attributes:
        k, neighbours, temperature: As ``KnnResult``.
        mean_average_precision: Mean over the classes that have a positive test image.
        per_class: Average precision of each of these classes.
    """

    k: int
    neighbours: int
    temperature: float
    mean_average_precision: float
    per_class: dict[int, float]


def knn_multilabel(
    train: FeatureSet,
    test: FeatureSet,
    ks: Sequence[int] = (20, 200),
    temperatures: Sequence[float] = (0.07,),
    **settings: Any,
) -> list[MultiLabelResult]:
    """Return the mean average precision of weighted kNN for images with any number of classes each; one search.

    Class ``c`` of a test image scores ``Σ_{i in top k} y_ic w_i / Σ_i w_i`` with ``w_i = exp(s_i / T)``: the weighted
    share of its neighbours that have the class. The average precision of a class is ``Σ_n (R_n - R_{n-1}) P_n`` over
    the thresholds of its scores, without interpolation (as in scikit-learn).

    Args:
        train, test: Their ``labels`` are ``[N,C]``: 1 where an image has the class, 0 where it has not.
        ks, temperatures, settings: As ``knn_grid``.

    Raises:
        UserError: Labels that are not such a table, no positive test image at all, or as ``knn``.
    """
    from sklearn.metrics import average_precision_score

    _check_votes(ks, temperatures, ("distance",))
    bank_labels, test_labels = _label_table(train, "train"), _label_table(test, "test")
    if bank_labels.shape[1] != test_labels.shape[1]:
        raise UserError(
            f"The train labels have {bank_labels.shape[1]} classes and the test labels {test_labels.shape[1]}; "
            "give both one column for every class."
        )
    if not test_labels.any():
        raise UserError("No test image has any class; evaluate on images of which some have one.")
    check_widths(train, test)
    check_finite(train.features, "train features")
    check_finite(test.features, "test features")
    similarity, position = search(train.features, test.features, _at_most(max(ks), len(train)), **settings)
    present = test_labels.any(0).nonzero().flatten().tolist()
    results = []
    for k in ks:
        used = min(k, len(train))
        for temperature in temperatures:
            scores = []
            for near, at in zip(
                torch.split(similarity[:, :used], QUERIES_AT_ONCE),
                torch.split(position[:, :used], QUERIES_AT_ONCE),
                strict=True,
            ):
                votes = _votes(near, "distance", temperature)
                weighted = torch.zeros(len(near), bank_labels.shape[1], dtype=torch.float64)
                for place in range(used):  # a column at a time: [queries, k, classes] would not fit
                    weighted += votes[:, place, None] * bank_labels[at[:, place]]
                scores.append(weighted / votes.sum(1, keepdim=True))
            table, truth = torch.cat(scores).numpy(), test_labels.numpy()
            per_class = {c: float(average_precision_score(truth[:, c], table[:, c])) for c in present}
            mean = sum(per_class.values()) / len(per_class)
            results.append(MultiLabelResult(k, used, temperature, mean, per_class))
    return results


def search_settings(config: EvalConfig) -> dict[str, Any]:
    """Return how neighbours are searched, as ``search`` takes it."""
    return {"index": config.index, "effort": config.index_effort, "memory_mb": config.search_memory_mb}


def knn_records(
    results: Sequence[KnnResult], split: str, settings: KnnSettings, config: EvalConfig, how: Mapping[str, Any]
) -> Iterator[Record]:
    """Give a record of every result; that of the first ``k`` and temperature is marked ``primary``."""
    effort = {} if config.index == "flat" else {"index_effort": config.index_effort}
    for result in results:
        own = {"k": result.k, "temperature": result.temperature, "weights": result.weights}
        own |= {"neighbours": result.neighbours, "index": config.index, **effort}
        first = (result.k, result.temperature) == (settings.k[0], settings.temperatures[0])
        found = {"recall": round(result.recall, 4)}
        yield Record(
            split=split, metric="top1", value=result.accuracy, how={**own, "primary": first, **how}, found=found
        )


def _above_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _check_votes(ks: Sequence[int], temperatures: Sequence[float], weights: Sequence[str]) -> None:
    if not ks or not all(map(is_count, ks)):
        raise UserError("eval.knn.k: give at least one number of neighbours, each at least 1.")
    if "distance" in weights and (not temperatures or not all(_above_zero(value) for value in temperatures)):
        raise UserError("eval.knn.temperatures: give at least one temperature, each above 0.")


def _at_most(k: int, bank: int) -> int:
    if k > bank:
        warnings.warn(f"kNN with k = {k} uses all {bank} features of the bank.", stacklevel=3)
    return min(k, bank)


def _label_table(part: FeatureSet, name: str) -> Tensor:
    if part.labels is None or part.labels.ndim != 2:
        raise UserError(f"The {name} labels are not a table of images and classes; give [N,C] labels of 0 and 1.")
    if len(part) == 0:
        raise UserError(f"The {name} features are empty; there is nothing to evaluate.")
    if not ((part.labels == 0) | (part.labels == 1)).all():
        raise UserError(f"The {name} labels hold other values than 0 and 1; give 1 for each class that an image has.")
    return part.labels.bool()


def _recall(
    position: Tensor, bank: FeatureSet, queries: FeatureSet, ks: Sequence[int], settings: dict[str, Any], **kind: bool
) -> dict[int, float]:
    used = {min(k, position.shape[1]) for k in ks}
    if settings.get("index", "flat") == "flat":
        return dict.fromkeys(used, 1.0)
    memory = {"memory_mb": settings["memory_mb"]} if "memory_mb" in settings else {}
    return recall_of(position, bank.features, queries.features, sorted(used), **kind, **memory)


def _accuracies(
    found: tuple[Tensor, Tensor],
    bank_labels: Tensor,
    true_labels: Tensor,
    ks: Sequence[int],
    temperatures: Sequence[float],
    weights: Sequence[str],
    recall: dict[int, float],
) -> list[KnnResult]:
    similarity, position = found
    classes, bank_class = torch.unique(bank_labels, return_inverse=True)
    results = []
    for k in ks:
        used = min(k, position.shape[1])
        for weight in weights:
            for temperature in temperatures if weight == "distance" else (None,):
                right = 0
                for near, at, label in zip(
                    torch.split(similarity[:, :used], QUERIES_AT_ONCE),
                    torch.split(position[:, :used], QUERIES_AT_ONCE),
                    torch.split(true_labels, QUERIES_AT_ONCE),
                    strict=True,
                ):
                    votes = _votes(near, weight, temperature)
                    scores = torch.zeros(len(near), len(classes), dtype=torch.float64)
                    winner = scores.scatter_add_(1, bank_class[at], votes).argmax(1)  # of equal ones the lowest class
                    right += int((classes[winner] == label).sum())
                results.append(KnnResult(k, used, weight, temperature, right / len(true_labels), recall[used]))
    return results


def _votes(similarity: Tensor, weights: str, temperature: float | None) -> Tensor:
    if weights == "uniform":
        return torch.ones_like(similarity, dtype=torch.float64)
    if weights != "distance" or temperature is None:
        raise ValueError(f"weights '{weights}' is neither 'distance' nor 'uniform'")
    # relative to the nearest: the same ranking, and no overflow at a low temperature
    return ((similarity - similarity[:, :1]).double() / temperature).exp()
