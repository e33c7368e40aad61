"""kNN accuracy: the scored images classified by their nearest training images."""

from __future__ import annotations

from collections.abc import Iterator

from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject
from selfsup.eval.voting import KnnSettings, knn_grid, knn_records, search_settings


@protocol("knn", KnnSettings, needs=("labels",), plain=True, shown=("k", "temperature"))
def evaluate(subject: Subject, settings: KnnSettings) -> Iterator[Record]:
    """kNN accuracy of the scored images, for every ``k`` and temperature; the first of each is *the* accuracy."""
    features = subject.features
    split, scored = features.scored
    found = knn_grid(
        features.train,
        scored,
        settings.k,
        settings.temperatures,
        weights=("distance",),
        **search_settings(subject.config),
    )
    return knn_records(found, split, settings, subject.config, features.how)
