"""Weighted nearest-neighbour classification: what the features know without any training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet, check_finite, check_widths, known_labels
from selfsup.eval.neighbours import search

QUERIES_AT_ONCE = 1024  # bounds the [queries, classes] table of votes


@dataclass(frozen=True)
class KnnResult:
    """Accuracy of one setting.

    Attributes:
        k: Number of neighbours that was asked for.
        neighbours: Number that voted: ``k``, or the size of the bank where that is smaller.
        weights: ``distance`` (a neighbour of similarity ``s`` has ``exp(s/T)`` votes) or ``uniform`` (one vote).
        temperature: ``T``; None with uniform weights.
        accuracy: Fraction of the test images whose class is right.
    """

    k: int
    neighbours: int
    weights: str
    temperature: float | None
    accuracy: float


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
) -> list[KnnResult]:
    """Return the accuracy of every ``k`` with every temperature, and with uniform votes: one search serves them all.

    Raises:
        UserError: As ``knn``.
    """
    if not ks or min(ks) < 1:
        raise UserError("eval.knn_k: give at least one number of neighbours, each at least 1.")
    if "distance" in weights and (not temperatures or min(temperatures) <= 0):
        raise UserError("eval.temperatures: give at least one temperature, each above 0.")
    bank_labels, test_labels = known_labels(train, "train"), known_labels(test, "test")
    check_widths(train, test)
    check_finite(train.features, "train features")
    check_finite(test.features, "test features")
    if max(ks) > len(train):
        warnings.warn(f"kNN with k = {max(ks)} uses all {len(train)} features of the bank.", stacklevel=2)

    classes, bank_class = torch.unique(bank_labels, return_inverse=True)
    similarity, position = search(train.features, test.features, min(max(ks), len(train)))
    neighbour_class = bank_class[position]
    results = []
    for k in ks:
        used = min(k, len(train))
        for weight in weights:
            for temperature in temperatures if weight == "distance" else (None,):
                votes = _votes(similarity[:, :used], weight, temperature)
                winner = _winner(neighbour_class[:, :used], votes, len(classes))
                accuracy = (classes[winner] == test_labels).double().mean().item()
                results.append(KnnResult(k, used, weight, temperature, accuracy))
    return results


def _votes(similarity: Tensor, weights: str, temperature: float | None) -> Tensor:
    if weights == "uniform":
        return torch.ones_like(similarity, dtype=torch.float64)
    if weights != "distance" or temperature is None:
        raise ValueError(f"weights '{weights}' is neither 'distance' nor 'uniform'")
    # relative to the nearest: the same ranking, and no overflow at a low temperature
    return ((similarity - similarity[:, :1]).double() / temperature).exp()


def _winner(neighbour_class: Tensor, votes: Tensor, classes: int) -> Tensor:
    winners = []
    for label, vote in zip(
        torch.split(neighbour_class, QUERIES_AT_ONCE), torch.split(votes, QUERIES_AT_ONCE), strict=True
    ):
        scores = torch.zeros(len(label), classes, dtype=torch.float64).scatter_add_(1, label, vote)
        winners.append(scores.argmax(1))  # the first of equal maxima: the lowest class
    return torch.cat(winners)
