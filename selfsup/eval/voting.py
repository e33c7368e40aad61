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
    check_votes(ks, temperatures, weights)
    bank_labels, test_labels = known_labels(train, "train"), known_labels(test, "test")
    check_widths(train, test)
    check_finite(train.features, "train features")
    check_finite(test.features, "test features")
    tell_absent(test_labels, bank_labels, "test")
    found = search(train.features, test.features, at_most(max(ks), len(train)), **settings)
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
    check_votes(ks, temperatures, weights)
    labels = known_labels(data, "train")
    if len(data) < 2:
        raise UserError("Leave-one-out kNN needs at least two images and there is one; add labelled images.")
    check_finite(data.features, "train features")
    found = search_others(data.features, at_most(max(ks), len(data) - 1), **settings)
    recall = _recall(found[1], data, data, ks, settings, others=True)
    return _accuracies(found, labels, labels, ks, temperatures, weights, recall)


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


def check_votes(ks: Sequence[int], temperatures: Sequence[float], weights: Sequence[str]) -> None:
    """Raise a UserError unless there are neighbours and temperatures that can vote."""
    if not ks or not all(map(is_count, ks)):
        raise UserError("eval.knn.k: give at least one number of neighbours, each at least 1.")
    if "distance" in weights and (not temperatures or not all(_above_zero(value) for value in temperatures)):
        raise UserError("eval.knn.temperatures: give at least one temperature, each above 0.")


def at_most(k: int, bank: int) -> int:
    """Return ``k`` or the size of the bank where that is smaller, with a warning."""
    if k > bank:
        warnings.warn(f"kNN with k = {k} uses all {bank} features of the bank.", stacklevel=3)
    return min(k, bank)


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
                    votes = votes_of(near, weight, temperature)
                    scores = torch.zeros(len(near), len(classes), dtype=torch.float64)
                    winner = scores.scatter_add_(1, bank_class[at], votes).argmax(1)  # of equal ones the lowest class
                    right += int((classes[winner] == label).sum())
                results.append(KnnResult(k, used, weight, temperature, right / len(true_labels), recall[used]))
    return results


def votes_of(similarity: Tensor, weights: str, temperature: float | None) -> Tensor:
    """Return the votes float64 ``[Q,k]`` of neighbours with cosine similarities ``[Q,k]``, the nearest first."""
    if weights == "uniform":
        return torch.ones_like(similarity, dtype=torch.float64)
    if weights != "distance" or temperature is None:
        raise ValueError(f"weights '{weights}' is neither 'distance' nor 'uniform'")
    # relative to the nearest: the same ranking, and no overflow at a low temperature
    return ((similarity - similarity[:, :1]).double() / temperature).exp()
