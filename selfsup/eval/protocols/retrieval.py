"""Retrieval: whether the images of the same class come first when a gallery is sorted by similarity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet, check_finite, check_widths, known_labels, unit_rows
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject
from selfsup.settings import setting

PAIRS_AT_ONCE = 8_000_000  # bounds the [queries, gallery] table of similarities


@dataclass
class RetrievalSettings:
    """What is asked of the ranking.

    Attributes:
        k: The k of recall@k.
    """

    k: list[int] = setting([1, 5, 10], least=1)


@protocol("retrieval", RetrievalSettings, needs=("labels",))
def evaluate(subject: Subject, settings: RetrievalSettings) -> Iterator[Record]:
    """Mean average precision, recall@k and R-precision: the scored images ask, the training images answer."""
    features = subject.features
    split, scored = features.scored
    result = retrieval(scored, features.train, settings.k, progress=subject.encoder.progress)
    values = {"map": result.mean_average_precision, "r_precision": result.r_precision}
    values |= {f"recall@{k}": value for k, value in result.recall.items()}
    how = {"gallery": "train", "queries": result.queries, "without_match": result.without_match, **features.how}
    for metric, value in values.items():
        yield Record(split=split, metric=metric, value=value, how=how)


@dataclass(frozen=True)
class RetrievalResult:
    """What a ranking of the gallery is worth, as means over the queries that have a match in it.

    Attributes:
        mean_average_precision: Of the whole ranking.
        recall: For each ``k`` the fraction of queries with a match among their first ``k``.
        r_precision: Fraction of matches among the first ``R``, for a query with ``R`` matches.
        queries: Number of queries with a match.
        without_match: Number of queries whose class is not in the gallery; they count nowhere.
    """

    mean_average_precision: float
    recall: dict[int, float]
    r_precision: float
    queries: int
    without_match: int


def retrieval(
    query: FeatureSet | str | Path,
    gallery: FeatureSet | str | Path | None = None,
    ks: Sequence[int] = (1, 5, 10),
    *,
    progress: bool = True,
) -> RetrievalResult:
    """Rank the gallery by cosine similarity to each query, and score the ranking by the labels.

    With ``m_r`` = 1 where the image at rank ``r`` has the class of the query and ``R = Σ m_r``: average precision
    ``1/R Σ_r m_r (m_1 + … + m_r) / r``, recall@k ``1[m_1 + … + m_k > 0]``, R-precision ``(m_1 + … + m_R) / R``
    (Musgrave et al., "A Metric Learning Reality Check", arXiv:2003.08505). Equally similar images are ranked by their
    position in the gallery. A ``k`` above the size of the gallery looks at all of it.

    Args:
        query: Labelled features, or a file that ``FeatureSet.save`` wrote.
        gallery: Likewise. None, or the very set of the queries, ranks each query's others: it does not find itself.
        ks: The ``k`` of recall@k.
        progress: Show a progress bar when it takes longer than two seconds.

    Raises:
        UserError: Missing labels, different widths, features that are not finite, a bad ``k``, an unreadable file, or
            no query has a match.
    """
    if not ks or min(ks) < 1:
        raise UserError("eval.retrieval.k: give at least one number of images, each at least 1.")
    queries = query if isinstance(query, FeatureSet) else FeatureSet.load(query)
    if gallery is None or isinstance(gallery, FeatureSet):
        bank = queries if gallery is None else gallery
        itself = bank is queries
    else:
        itself = not isinstance(query, FeatureSet) and Path(query).resolve() == Path(gallery).resolve()
        bank = queries if itself else FeatureSet.load(gallery)
    query_labels, bank_labels = known_labels(queries, "query"), known_labels(bank, "gallery")
    check_widths(bank, queries)
    check_finite(queries.features, "query features")
    check_finite(bank.features, "gallery features")

    ranked = unit_rows(bank.features).T
    scores: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    with progress_bar(total=len(queries), desc="retrieval", unit="query", delay=2, disable=not progress) as bar:
        for rows in torch.split(torch.arange(len(queries)), max(1, PAIRS_AT_ONCE // len(bank))):
            similarity = unit_rows(queries.features[rows]) @ ranked
            if itself:
                similarity[torch.arange(len(rows)), rows] = -torch.inf  # last, where it is cut off
            order = similarity.sort(dim=1, descending=True, stable=True).indices
            match = bank_labels[order[:, : len(bank) - itself]] == query_labels[rows, None]
            found = _scores(match[match.any(1)])
            for values, value in zip(scores, found, strict=True):
                values.append(value)
            bar.update(len(rows))
    ap, rank, precision = (torch.cat(values) for values in scores)
    if not len(ap):
        raise UserError("No query has an image of its class in the gallery; give a gallery with the same classes.")
    recall = {k: (rank < k).double().mean().item() for k in ks}
    return RetrievalResult(ap.mean().item(), recall, precision.mean().item(), len(ap), len(queries) - len(ap))


def _scores(match: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return average precision, rank of the first match from 0 and R-precision of each row of bool ``[Q,N]``."""
    hits = match.cumsum(1)
    total = hits[:, -1:]
    ranks = torch.arange(1, match.shape[1] + 1)
    average = (match * hits / ranks.double()).sum(1) / total[:, 0]
    return average, match.int().argmax(1), hits.gather(1, total - 1)[:, 0].double() / total[:, 0]
