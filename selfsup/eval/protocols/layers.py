"""Where information is lost: kNN accuracy and effective rank after every stage and every layer of the head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly
from selfsup.eval.voting import KnnSettings, knn_grid
from selfsup.functional.diagnostics import rank_me

BANK, QUERIES = 5000, 2000  # a table of every layer is kept in memory


@protocol("layers", KnnSettings, key="knn", needs=("network",), shown=("layer", "k", "temperature"))
def evaluate(subject: Subject, settings: KnnSettings) -> Iterator[Record]:
    """kNN accuracy and RankMe after every stage of the network and every layer of the head.

    They show where information is lost; methods whose head throws much away keep it in the layers before (Ouyang et
    al., arXiv:2403.11391, where the layer to use is read off such a table). As a layer may be chosen by them, the
    accuracies are those of the hold-out where there is one. Without labels the ranks alone are returned. At most 5,000
    training and 2,000 scored images are used, spaced evenly; the vote is that of the first of ``eval.knn.k`` and
    ``eval.knn.temperatures``.
    """
    split, scored = subject.unseen
    images, asked = evenly(subject.splits.train, BANK), evenly(scored, QUERIES)
    encoder = replace(subject.encoder, network=subject.network)
    bank = encoder.layers(images, subject.head)
    labelled = all(part.labels is not None and bool((part.labels >= 0).all()) for part in (images, asked))
    queries = encoder.layers(asked, subject.head) if labelled else {}
    k, temperature = settings.k[0], settings.temperatures[0]
    counts = {"train_images": len(images), "scored_images": len(asked) if labelled else 0}
    for depth, (layer, features) in enumerate(bank.items()):
        place: dict[str, Any] = {"layer": layer, "depth": depth, "dim": features.features.shape[1], **counts}
        rank = rank_me(features.features).item()
        yield Record(split="train", metric="rank_me", value=rank, how=place)
        if labelled:
            (result,) = knn_grid(features, queries[layer], [k], [temperature], weights=("distance",))
            how = place | {"weights": result.weights, "k": result.k, "temperature": temperature}
            yield Record(split=split, metric="top1", value=result.accuracy, how=how)
