"""A part of the images that stands for all of them: those that most others are like, cluster by cluster (SAS)."""

from __future__ import annotations

import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.errors import UserError
from selfsup.eval.features import check_finite, unit_rows
from selfsup.eval.kmeans import assigned
from selfsup.eval.protocols.clustering import spherical_kmeans


def select_images(features: Tensor, share: float, clusters: int, seed: int = 0, progress: bool = True) -> Tensor:
    r"""Return the rows of the images that contrastive learning needs most, in rising order.

    The images fall into clusters (spherical k-means), which stand for the classes that nobody has told. Of each, the
    same share is chosen, greedily, so that what is left out is like what is kept:

    .. math:: \max_{S} \sum_{i \notin S} \sum_{j \in S} \max(0, \cos(z_i, z_j)), \qquad
              \text{gain of } j = \sum_{i \ne j} d_{ij} - 2 \sum_{i \in S} d_{ij}

    Args:
        features: float ``[N,D]``, of any network; they are compared by their directions.
        share: Of the images, above 0 and below 1; at least one image of each cluster is kept.
        clusters: Number of clusters, about that of the classes that are expected.
        seed: Of k-means.
        progress: Show progress bars on what takes longer than two seconds.

    Returns:
        int64 ``[M]``, with ``M`` about ``share · N``.

    Raises:
        UserError: A share out of range, more clusters than images, or features that are not finite.

    Source:
        Joshi and Mirzasoleiman, "Data-Efficient Contrastive Self-supervised Learning", 2023. In the authors' code
        (sjoshi804/sas-data-efficient-contrastive-learning, 40d36d5) the rows of chosen images become zero before they
        are subtracted, so that images are taken in the order of the first sum alone; here both sums count.
    """
    if not 0 < share < 1:
        raise UserError(f"share is {share}; give a share of the images above 0 and below 1, such as 0.2.")
    if not 1 <= clusters <= len(features):
        raise UserError(f"clusters is {clusters}; give a number from 1 to that of the images, {len(features)}.")
    check_finite(features, "features")
    rows = unit_rows(features)
    which = assigned(rows, spherical_kmeans(features, clusters, seed=seed, progress=progress))[1]
    members = [(which == cluster).nonzero().flatten() for cluster in range(clusters)]
    counts = [min(len(some), max(1, round(share * len(some)))) for some in members if len(some)]
    with progress_bar(desc="choosing", total=sum(counts), unit="image", delay=2, disable=not progress) as bar:
        chosen = []
        for some, count in zip((some for some in members if len(some)), counts, strict=True):
            chosen.append(some[representatives(rows[some], count)])
            bar.update(count)
    return torch.cat(chosen).sort().values


def representatives(rows: Tensor, count: int) -> Tensor:
    """Return the rows that are most like the others, the best first, each for what those before it leave.

    Args:
        rows: float32 ``[n,D]``, of length 1.
        count: How many, at most ``n``.
    """
    likeness = torch.cat([(some @ rows.T).clamp_(min=0).double().sum(1) for some in torch.split(rows, 1024)])
    gain = likeness - rows.square().sum(1).double()
    order = []
    for _ in range(count):
        best = int(gain.argmax())
        order.append(best)
        gain -= 2 * (rows @ rows[best]).clamp_(min=0).double()
        gain[order] = -torch.inf
    return torch.tensor(order)
