"""Spherical k-means gives faiss's centroids: its starts, its choice of rows, its way with clusters that are empty."""

import faiss
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from selfsup.eval.kmeans import lloyd


def blobs(count, dim, groups, noise, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, dim, generator=generator)
    which = torch.randint(0, groups, (count,), generator=generator)
    return F.normalize(centres[which] + noise * torch.randn(count, dim, generator=generator), dim=1)


def by_faiss(rows, clusters, iterations, seed, points=1024):
    settings = {"spherical": True, "min_points_per_centroid": 1, "max_points_per_centroid": points}
    kmeans = faiss.Kmeans(rows.shape[1], clusters, niter=iterations, seed=seed, **settings)
    kmeans.train(rows.numpy())
    return torch.from_numpy(kmeans.centroids), kmeans.obj[-1], [int(step["nsplit"]) for step in kmeans.iteration_stats]


@pytest.mark.parametrize("iterations", [1, 8])
@pytest.mark.parametrize(
    ("count", "dim", "clusters", "points"),
    [(2000, 16, 10, 1024), (300, 3, 60, 1024), (900, 8, 4, 100), (500, 64, 1, 1024)],  # the third leaves rows out
)
def test_one_seed_gives_faiss_centroids(count, dim, clusters, points, iterations):
    rows = blobs(count, dim, 5, 0.5, count)
    for seed in (1, 7):
        expected, objective, _ = by_faiss(rows, clusters, iterations, seed, points)
        found, own = lloyd(rows, clusters, iterations, seed, points * clusters)
        assert torch.allclose(found, expected, atol=2e-6)
        assert own == pytest.approx(objective, rel=1e-5)


@pytest.mark.parametrize(("clusters", "copies", "seed"), [(12, 30, 1), (12, 40, 2), (20, 40, 2), (20, 40, 3)])
def test_empty_clusters_take_halves_of_others_as_faiss_does(clusters, copies, seed):
    """Looked at after one iteration: of a half that lies on its rows, rounding decides whose they are."""
    rows = blobs(61, 3, 4, 0.1, seed)
    rows[:copies] = rows[0]
    expected, _, splits = by_faiss(rows, clusters, 1, 1)
    assert splits[0] >= 2
    assert torch.allclose(lloyd(rows, clusters, 1, 1, 10**5)[0], expected, atol=2e-6)


def test_it_ends_when_nothing_moves_with_what_more_iterations_would_give():
    rows = blobs(400, 4, 3, 0.1, 0)
    ended, objective = lloyd(rows, 3, 10_000, 1, 10**5)
    exact, at_last = lloyd(rows.double(), 3, 60, 1, 10**5)
    assert torch.allclose(ended.double(), exact, atol=1e-6)
    assert objective == pytest.approx(at_last, rel=1e-6)
    nearest = (rows @ ended.T).argmax(1)
    means = torch.stack([F.normalize(rows[nearest == c].double().mean(0), dim=0) for c in range(3)])
    assert torch.allclose(ended.double(), means, atol=1e-6)  # a fixed point, by a loop


def test_as_many_clusters_as_rows_are_the_rows():
    rows = blobs(12, 5, 3, 1.0, 3)
    found, objective = lloyd(rows, 12, 5, 1, 10**5)
    assert torch.equal(found, rows)
    assert objective == pytest.approx(12)
    assert np.isfinite(found.numpy()).all()
