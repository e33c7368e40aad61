"""Leave-one-out kNN accuracy: each training image classified by all the others."""

from __future__ import annotations

from collections.abc import Iterator

from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject
from selfsup.eval.voting import KnnSettings, knn_loo, knn_records, search_settings


@protocol("knn_loo", KnnSettings, key="knn", needs=("labels",), shown=("k", "temperature"))
def evaluate(subject: Subject, settings: KnnSettings) -> Iterator[Record]:
    """kNN accuracy of each training image among all the others, with the settings of ``eval.knn``."""
    features = subject.features
    found = knn_loo(features.train, settings.k, settings.temperatures, **search_settings(subject.config))
    return knn_records(found, "train", settings, subject.config, features.how)
