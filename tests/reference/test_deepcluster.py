"""Spherical k-means and DeepCluster v2's loss against plain loops over floats, and closed forms."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from selfsup.functional import deepcluster_loss, spherical_lloyd


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def loop_lloyd(points, centroids, rounds):
    def nearest(point):
        scores = [dot(point, c) for c in centroids]
        return scores.index(max(scores))

    for _ in range(rounds):
        members = [[p for p in points if nearest(p) == k] for k in range(len(centroids))]
        moved = []
        for own, old in zip(members, centroids, strict=True):
            mean = [math.fsum(column) / len(own) for column in zip(*own, strict=True)] if own else old
            length = math.hypot(*mean)
            moved.append([x / length for x in mean])
        centroids = moved
    return centroids, [nearest(p) for p in points]


def loop_loss(scores, assignment, temperature):
    """Value and gradients, one clustering, view and image at a time."""
    total, gradients = 0.0, [torch.zeros_like(s) for s in scores]
    for h, clustering in enumerate(scores):
        views, images, _ = clustering.shape
        for v in range(views):
            for n in range(images):
                logits = [x / temperature for x in clustering[v, n].tolist()]
                top = max(logits)
                sizes = [math.exp(x - top) for x in logits]
                mass, own = math.fsum(sizes), int(assignment[h, n])
                share = 1 / (len(scores) * views * images)
                total += share * (math.log(mass) + top - logits[own])
                for k, size in enumerate(sizes):
                    gradients[h][v, n, k] += share * (size / mass - (k == own)) / temperature
    return total, gradients


@pytest.mark.parametrize(
    ("count", "clusters", "dim", "rounds"), [(1, 1, 2, 1), (12, 3, 4, 1), (30, 5, 3, 10), (9, 9, 2, 4)]
)
def test_lloyd_is_the_loop(count, clusters, dim, rounds):
    points = normalize(random(count, dim), dim=1)
    start = points[torch.randperm(count, generator=torch.Generator().manual_seed(1))[:clusters]]
    centroids, assignment = spherical_lloyd(points, start, rounds)
    expected, wanted = loop_lloyd(points.tolist(), start.tolist(), rounds)
    torch.testing.assert_close(centroids, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)
    assert assignment.tolist() == wanted


def test_lloyd_in_parts_is_lloyd_at_once():
    """More points than are scored at a time."""
    points = normalize(random(8192 + 5, 3), dim=1)
    centroids, assignment = spherical_lloyd(points, points[:4], 2)
    whole = points[:4]
    for _ in range(2):
        near = (points @ whole.T).argmax(1)
        whole = torch.stack([normalize(points[near == k].sum(0), dim=0) for k in range(4)])
    torch.testing.assert_close(centroids, whole)
    assert torch.equal(assignment, (points @ whole.T).argmax(1))


def test_clusters_that_lie_apart_are_found_and_an_unused_centroid_stays():
    axes = torch.eye(4, dtype=torch.float64)
    points = normalize(axes[:3].repeat(5, 1) + 0.05 * random(15, 4), dim=1)
    far = -torch.ones(1, 4, dtype=torch.float64) / 2
    centroids, assignment = spherical_lloyd(points, torch.cat([points[:3], far]), 10)
    assert assignment.tolist() == [0, 1, 2] * 5
    torch.testing.assert_close(centroids[3:], far)
    torch.testing.assert_close(centroids[:3], normalize(points.unflatten(0, (5, 3)).sum(0), dim=1))


def test_the_objective_never_falls():
    points = normalize(random(60, 5), dim=1)
    objective = []
    for rounds in range(1, 8):
        centroids, assignment = spherical_lloyd(points, points[:6], rounds)
        objective.append(float((points * centroids[assignment]).sum()))
    assert objective == sorted(objective)
    assert objective[-1] > objective[0]


def test_no_gradient_flows_through_the_clusters():
    points = normalize(random(6, 3), dim=1).requires_grad_()
    assert not spherical_lloyd(points, points[:2])[0].requires_grad


@pytest.mark.parametrize(("views", "images", "clusters"), [(2, 1, [1]), (2, 3, [4, 4, 2]), (4, 5, [3, 7])])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_the_loss_is_the_loop_in_value_and_gradient(views, images, clusters, temperature):
    scores = [torch.tanh(random(views, images, k, seed=k + h)).requires_grad_() for h, k in enumerate(clusters)]
    generator = torch.Generator().manual_seed(3)
    assignment = torch.stack([torch.randint(k, (images,), generator=generator) for k in clusters])
    loss = deepcluster_loss(scores, assignment, temperature)
    loss.backward()
    value, gradients = loop_loss([s.detach() for s in scores], assignment, temperature)
    assert loss.item() == pytest.approx(value, rel=1e-11, abs=1e-12)
    for score, gradient in zip(scores, gradients, strict=True):
        torch.testing.assert_close(score.grad, gradient, rtol=1e-10, atol=1e-13)


def test_equal_scores_cost_the_logarithm_of_the_clusters():
    scores = [torch.full((3, 4, k), 0.3) for k in (5, 20)]
    loss = deepcluster_loss(scores, torch.zeros(2, 4, dtype=torch.long), 0.1)
    assert loss.item() == pytest.approx((math.log(5) + math.log(20)) / 2)


def test_half_precision_is_computed_in_float32():
    scores = [random(2, 3, 4).to(torch.bfloat16)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert deepcluster_loss(scores, torch.zeros(1, 3, dtype=torch.long), 0.1).dtype == torch.float32


def test_mistakes_are_named():
    scores, cluster = [random(2, 3, 4)], torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="one clustering or more"):
        deepcluster_loss([], cluster, 0.1)
    with pytest.raises(ValueError, match=r"assignment .* has the shape \[2, 3\]"):
        deepcluster_loss(scores, cluster.repeat(2, 1), 0.1)
    with pytest.raises(ValueError, match="assignment must be from 0 to 3"):
        deepcluster_loss(scores, cluster + 4, 0.1)
    with pytest.raises(ValueError, match="iterations must be a whole number from 1 on"):
        spherical_lloyd(random(3, 2), random(2, 2), 0)
