"""Multi-label kNN: the labels that the nearest training images have, as mean average precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from selfsup.eval.features import FeatureSet, check_finite, check_widths
from selfsup.eval.neighbours import search
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject
from selfsup.eval.targets import average_precision, check_tables, label_table, parts_of, precision_by_name
from selfsup.eval.voting import QUERIES_AT_ONCE, at_most, check_votes, search_settings, votes_of
from selfsup.settings import setting


@dataclass
class MultilabelKnnSettings:
    """Who votes, and how; the first of ``k`` and the first of ``temperatures`` give *the* number, as of ``knn``.

    Attributes:
        k: Numbers of neighbours.
        temperatures: Of the vote.
    """

    k: list[int] = setting([20, 200], least=1)
    temperatures: list[float] = setting([0.07], above=0)


@protocol("multilabel_knn", MultilabelKnnSettings, needs=("multilabel",), plain=True, shown=("k", "temperature"))
def evaluate(subject: Subject, settings: MultilabelKnnSettings) -> Iterator[Record]:
    """Mean average precision over the labels, scored by the nearest training images, for every k and temperature."""
    parts = parts_of(subject, "multilabel")
    found = knn_multilabel(
        parts.train, parts.scored, settings.k, settings.temperatures, **search_settings(subject.config)
    )
    for result in found:
        own: dict[str, Any] = {"k": result.k, "temperature": result.temperature, "neighbours": result.neighbours}
        own |= {"index": subject.config.index, "labels": len(parts.names), "scored_labels": len(result.per_class)}
        if subject.config.index != "flat":
            own["index_effort"] = subject.config.index_effort
        first = (result.k, result.temperature) == (settings.k[0], settings.temperatures[0])
        yield Record(
            split=parts.split,
            metric="map",
            value=result.mean_average_precision,
            how={**own, "primary": first, **parts.how},
            found={"per_label": precision_by_name(result.per_class, parts.names)},
        )


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
    check_votes(ks, temperatures, ("distance",))
    bank_labels, test_labels = label_table(train, "train"), label_table(test, "test")
    check_tables(bank_labels, test_labels)
    check_widths(train, test)
    check_finite(train.features, "train features")
    check_finite(test.features, "test features")
    similarity, position = search(train.features, test.features, at_most(max(ks), len(train)), **settings)
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
                votes = votes_of(near, "distance", temperature)
                weighted = torch.zeros(len(near), bank_labels.shape[1], dtype=torch.float64)
                for place in range(used):  # a column at a time: [queries, k, classes] would not fit
                    weighted += votes[:, place, None] * bank_labels[at[:, place]]
                scores.append(weighted / votes.sum(1, keepdim=True))
            precision = average_precision(torch.cat(scores), test_labels).tolist()
            per_class = {c: precision[c] for c in present}
            mean = sum(per_class.values()) / len(per_class)
            results.append(MultiLabelResult(k, used, temperature, mean, per_class))
    return results
