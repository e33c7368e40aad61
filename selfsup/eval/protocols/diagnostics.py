"""What the pooled features say without any training: uniformity, spread, effective rank, spectrum."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from selfsup.errors import UserError
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.shown import nearest_similarities
from selfsup.eval.subject import Subject
from selfsup.functional.diagnostics import (
    alpha_req,
    effective_rank,
    feature_std,
    singular_values,
    tolerance,
    uniformity,
)

SPECTRUM_POINTS = 64
IMAGES = 25_600  # what RankMe is computed on in its paper


@protocol("diagnostics", plain=True)
def evaluate(subject: Subject, settings: None) -> Iterator[Record]:
    """Uniformity, spread, RankMe and alpha-ReQ of the training features.

    They need no labels and are computed on at most 25,600 training images, spaced evenly over the split. The RankMe
    record carries the singular values as fractions of the largest, at ranks spaced evenly on a logarithmic axis. Where
    there are labels, tolerance is added; alpha-ReQ is left out where too few eigenvalues are above rounding error.
    """
    features = subject.features
    count = min(len(features.train), IMAGES)
    if count < 2:
        raise UserError("data.limit: diagnostics need at least two training images; raise it.")
    chosen = torch.linspace(0, len(features.train) - 1, count).round().long()
    z, labels = features.train.features[chosen], features.train.labels
    sigma = singular_values(z)
    ranks = torch.unique(torch.logspace(0, math.log10(len(sigma)), SPECTRUM_POINTS).round().long())
    shares = sigma[ranks - 1] / sigma[0].clamp_min(torch.finfo(sigma.dtype).tiny)
    values = {"uniformity": uniformity(z), "rank_me": effective_rank(sigma), "feature_std": feature_std(z)}
    with contextlib.suppress(ValueError):
        values["alpha_req"] = alpha_req(z)
    if labels is not None:
        with contextlib.suppress(ValueError):
            values["tolerance"] = tolerance(z, labels[chosen])
    network = subject.encoder.network
    if network is not None and hasattr(network, "forward_dense"):
        bank = features.train, subject.splits.train
        subject.shown["similarity"] = lambda: nearest_similarities(subject.encoder, bank, subject.asked(features))
    spectrum = {"rank": ranks.tolist(), "value": shares.tolist()}
    how = {"images": count, **features.how}
    for metric, value in values.items():
        found = {"spectrum": spectrum} if metric == "rank_me" else {}
        yield Record(split="train", metric=metric, value=value.item(), how=how, found=found)
