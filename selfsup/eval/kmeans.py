"""Spherical k-means by torch's matrix product: Lloyd's iterations as faiss runs them.

Torch knows the processor, where the BLAS in faiss's wheels takes some for an older one; what it costs beside faiss is
printed by ``benchmarks/neighbours.py --kmeans``.

Starts, empty clusters and objective are those of ``faiss.Kmeans(spherical=True)``, so that one seed gives the centroids
that faiss gives, up to rounding (facebookresearch/faiss, ``Clustering.cpp``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ROWS_AT_ONCE = 2048  # what stays in the cache beside its products
NUDGE = 1 / 1024  # of the two halves of a cluster that is split
NEXT_SEED = 1  # faiss draws the start by the seed after the one that it draws the rows by


def lloyd(rows: Tensor, clusters: int, iterations: int, seed: int, most_rows: int) -> tuple[Tensor, float]:
    """Return centroids ``[K,D]`` of length 1 after some iterations from a start drawn among the rows, and an objective.

    An iteration puts each row into the cluster of largest inner product, and each centroid at the normalised sum of
    its rows. The objective ``Σ_i max_k u_i · c_k`` is that of the centroids before the last move.

    Args:
        rows: float32 ``[N,D]``, of length 1, on the device that computes.
        clusters: ``K``, from 1 to ``N``.
        iterations: How often centroids move, at least once.
        seed: Of the start, and of which rows are left out.
        most_rows: Of more, so many are drawn.
    """
    if len(rows) > most_rows:
        rows = rows[_permutation(len(rows), seed)[:most_rows].to(rows.device)]
    if len(rows) == clusters:
        return rows, float(len(rows))
    centroids = F.normalize(rows[_permutation(len(rows), seed + NEXT_SEED)[:clusters].to(rows.device)], dim=1)
    objective, before = 0.0, rows.new_empty(0, dtype=torch.int64)
    for _ in range(iterations):
        value, nearest = assigned(rows, centroids)
        objective = value.double().sum().item()
        if torch.equal(nearest, before):
            break  # nothing moves any more
        before = nearest
        sizes = torch.bincount(nearest, minlength=clusters)
        centroids = torch.zeros_like(centroids).index_add_(0, nearest, rows)
        if not sizes.all():
            split_largest(centroids, sizes, len(rows))
        centroids = F.normalize(centroids, dim=1)
    return centroids, objective


def assigned(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row the largest inner product with a centroid ``[N]``, and which centroid, int64 ``[N]``."""
    found = [(some @ centroids.T).max(1) for some in torch.split(rows, ROWS_AT_ONCE)]
    return torch.cat([value for value, _ in found]), torch.cat([which for _, which in found])


def split_largest(centroids: Tensor, sizes: Tensor, rows: int) -> None:
    """Give each empty cluster half of another one, in place: both a little beside where that was.

    The other is drawn, a cluster of ``n`` rows with a chance that grows as ``n - 1``.

    Args:
        centroids: float32 ``[K,D]``.
        sizes: int64 ``[K]``, rows of each.
        rows: Their number.
    """
    draw = np.random.RandomState(1234)  # the generator that faiss draws by
    held = sizes.float().cpu().numpy()  # a half of an odd number is no whole number
    away = torch.ones(centroids.shape[1], device=centroids.device)
    away[1::2] = -1
    for empty in np.flatnonzero(held == 0):
        chances, other = (held - 1) / np.float32(rows - len(held)), 0
        while np.float32(draw.randint(2**32, dtype=np.uint32)) / np.float32(2**32) >= chances[other]:
            other = (other + 1) % len(held)
        where = centroids[other].clone()
        centroids[empty], centroids[other] = where * (1 + away * NUDGE), where * (1 - away * NUDGE)
        held[empty] = held[other] / 2
        held[other] -= held[empty]


def _permutation(count: int, seed: int) -> Tensor:
    import faiss

    order = np.empty(count, dtype=np.int32)
    library: Any = faiss  # its stubs have no rand_perm
    library.rand_perm(library.swig_ptr(order), count, seed)
    return torch.from_numpy(order).long()
