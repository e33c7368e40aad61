"""Clustering: whether the groups that k-means finds are the classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.bars import progress_bar
from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet, check_finite, check_widths, known_labels, unit_rows
from selfsup.eval.kmeans import lloyd
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject
from selfsup.functional.arguments import floats, is_count
from selfsup.settings import setting

RESTARTS = 5
ITERATIONS = 50
POINTS_PER_CLUSTER = 1024  # more, drawn at random, are left out of the fit: they hardly move a centroid


@dataclass
class ClusteringSettings:
    """How features are clustered.

    Attributes:
        clusters: Number of k-means clusters; None is the number of classes.
    """

    clusters: int | None = setting(None, least=1)


@protocol("clustering", ClusteringSettings, needs=("labels",))
def evaluate(subject: Subject, settings: ClusteringSettings) -> Iterator[Record]:
    """How well k-means clusters of the training features agree with the classes of the scored images."""
    features = subject.features
    split, scored = features.scored
    result = clustering(features.train, scored, settings.clusters, seed=subject.seed, progress=subject.encoder.progress)
    how = {"clusters": result.clusters, "fitted_on": "train", "features": "L2-normalised", "restarts": RESTARTS}
    how |= {"iterations": ITERATIONS, "most_points_per_cluster": POINTS_PER_CLUSTER, **features.how}
    for metric, value in {"nmi": result.nmi, "ari": result.ari, "cluster_accuracy": result.accuracy}.items():
        yield Record(split=split, metric=metric, value=value, how=how)


@dataclass(frozen=True)
class ClusteringResult:
    """How well clusters agree with the classes.

    Attributes:
        nmi: Normalised mutual information, by the arithmetic mean of the entropies.
        ari: Adjusted Rand index: 1 is equal, 0 what chance gives.
        accuracy: Fraction of images in the class of their cluster, under the best one-to-one assignment.
        clusters: Number of clusters.
        assignment: int64 ``[N]``, the cluster of each scored image.
    """

    nmi: float
    ari: float
    accuracy: float
    clusters: int
    assignment: Tensor


def clustering(
    train: FeatureSet, test: FeatureSet, clusters: int | None = None, *, seed: int = 0, progress: bool = True
) -> ClusteringResult:
    """Fit k-means to the training features, put each test image into its nearest cluster, and compare with the labels.

    The fit sees no label and no test image (give one set twice to cluster it itself).

    Args:
        train: Features, labelled or not.
        test: Labelled features.
        clusters: Their number; None is the number of classes in the labels of ``train``, or of ``test`` where
            ``train`` has none.
        seed: Start of k-means.
        progress: Show a progress bar over the restarts when it takes longer than two seconds.

    Raises:
        UserError: Missing labels, different widths, features that are not finite, fewer images than clusters.
    """
    labels = known_labels(test, "test")
    check_widths(train, test)
    check_finite(train.features, "train features")
    check_finite(test.features, "test features")
    if clusters is None:
        known = labels if train.labels is None else train.labels[train.labels >= 0]
        clusters = len(torch.unique(known))
    centroids = spherical_kmeans(train.features, clusters, seed=seed, progress=progress)
    assignment = (F.normalize(test.features.float(), dim=1) @ centroids.T).argmax(1)
    return agreement(assignment, labels, clusters)


def spherical_kmeans(features: Tensor, clusters: int, *, seed: int = 0, progress: bool = True) -> Tensor:
    """Return the centroids, float32 ``[K,D]`` of length 1, that k-means finds for the L2-normalised features.

    The best of five starts by the objective ``Σ_i max_k u_i · c_k``, 50 iterations each, on at most 1,024 features a
    cluster. Computed by torch, on the GPU where there is one; starts are those of faiss (``selfsup.eval.kmeans``).

    Args:
        features: float ``[N,D]``.
        clusters: ``K``, from 1 to ``N``.
        seed: Of the starts and of the choice of the features.
        progress: Show a progress bar over the starts when it takes longer than two seconds.

    Raises:
        UserError: ``K`` is no whole number from 1 to ``N``.
        ValueError: Features that are not finite, or all zero.
    """
    floats("spherical_kmeans", "[N,D]", features=features)
    if not is_count(clusters) or clusters > len(features):
        raise UserError(
            f"eval.clustering.clusters: {clusters} clusters cannot be made of {len(features)} images; "
            "set it between 1 and the number of images."
        )
    rows = unit_rows(features)
    if not rows.any():
        raise ValueError("spherical_kmeans: features are all zero and have no direction.")
    if torch.cuda.is_available():
        rows = rows.cuda()
    best: tuple[float, Tensor] | None = None
    for restart in progress_bar(range(RESTARTS), desc="k-means", unit="start", delay=2, disable=not progress):
        start = 1 + RESTARTS * seed + restart
        centroids, objective = lloyd(rows, clusters, ITERATIONS, start, POINTS_PER_CLUSTER * clusters)
        if best is None or objective > best[0]:
            best = objective, centroids
    assert best is not None
    return best[1].cpu()


def agreement(assignment: Tensor, labels: Tensor, clusters: int) -> ClusteringResult:
    """Compare clusters with classes.

    The accuracy is ``max_π 1/N Σ_i 1[π(a_i) = y_i]`` over one-to-one assignments ``π`` of clusters to classes, found by
    the Hungarian algorithm; with unequal numbers the clusters, or classes, that are left over are wrong.

    Args:
        assignment: int64 ``[N]``, from 0 to ``clusters - 1``.
        labels: int64 ``[N]``, any numbers.
        clusters: Number of clusters, empty ones included.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    classes, which = torch.unique(labels, return_inverse=True)
    together = torch.bincount(assignment * len(classes) + which, minlength=clusters * len(classes))
    table = together.view(clusters, len(classes)).numpy()
    accuracy = table[linear_sum_assignment(table, maximize=True)].sum() / len(labels)
    truth, found = labels.numpy(), assignment.numpy()
    return ClusteringResult(
        nmi=float(normalized_mutual_info_score(truth, found)),
        ari=float(adjusted_rand_score(truth, found)),
        accuracy=float(accuracy),
        clusters=clusters,
        assignment=assignment,
    )
