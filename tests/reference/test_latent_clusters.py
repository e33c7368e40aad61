"""CAPI's assignments, place by place, against a loop over floats, and the choice of places."""

import math

import pytest
import torch

from selfsup.functional import chosen_places, inverse_block_mask, positionwise_sinkhorn, sinkhorn


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loop(scores, epsilon, iterations):
    found = torch.zeros_like(scores)
    for place in range(scores.shape[1]):
        rows = [[math.exp(s / epsilon) for s in row] for row in scores[:, place].tolist()]
        for _ in range(iterations):
            use = [math.fsum(column) for column in zip(*rows, strict=True)]
            rows = [[p / u for p, u in zip(row, use, strict=True)] for row in rows]
            rows = [[p / math.fsum(row) for p in row] for row in rows]
        found[:, place] = torch.tensor(rows, dtype=torch.float64)
    return found


@pytest.mark.parametrize(("images", "places", "clusters"), [(1, 2, 3), (5, 3, 4), (6, 1, 9)])
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.06, 3), (1.0, 1)])
def test_assignments_are_the_loop(images, places, clusters, epsilon, iterations):
    scores = random(images, places, clusters).tanh().requires_grad_()
    found = positionwise_sinkhorn(scores, epsilon, iterations)
    torch.testing.assert_close(found, loop(scores.detach(), epsilon, iterations), rtol=1e-9, atol=1e-13)
    assert not found.requires_grad
    torch.testing.assert_close(found.sum(2), torch.ones_like(found[:, :, 0]))
    single = positionwise_sinkhorn(scores.float(), epsilon, iterations)
    torch.testing.assert_close(single.double(), found, rtol=1e-3, atol=1e-4)


def test_one_place_is_sinkhorn_and_several_are_each_by_itself():
    scores = random(8, 3, 5)
    for place in range(3):
        torch.testing.assert_close(
            positionwise_sinkhorn(scores, 0.5, 3)[:, place], sinkhorn(scores[:, place], 0.5, 3), rtol=1e-9, atol=1e-12
        )
    pooled = sinkhorn(scores.flatten(0, 1), 0.5, 3).view(8, 3, 5)
    assert (pooled - positionwise_sinkhorn(scores, 0.5, 3)).abs().max() > 0.01


def test_a_cluster_cannot_stand_for_a_place():
    """Patches that are alike in all images at a place, and unlike from place to place, tell nothing: even codes."""
    scores = random(1, 4, 6).expand(10, 4, 6)
    torch.testing.assert_close(positionwise_sinkhorn(scores, 0.06, 3), torch.full((10, 4, 6), 1 / 6).double())


def test_clusters_are_used_evenly_at_each_place_after_many_rounds():
    codes = positionwise_sinkhorn(random(12, 3, 4), 0.5, 200)
    torch.testing.assert_close(codes.sum(0), torch.full((3, 4), 3.0).double(), rtol=1e-6, atol=1e-6)


def test_scores_whose_exponentials_vanish_still_sum_to_one():
    codes = positionwise_sinkhorn(100 * random(3, 2, 4).float(), 0.06, 3)
    torch.testing.assert_close(codes.sum(2), torch.ones(3, 2))


def test_a_single_image_belongs_to_all_clusters_alike():
    torch.testing.assert_close(positionwise_sinkhorn(random(1, 2, 4), 0.06, 3), torch.full((1, 2, 4), 0.25).double())


def uniform(images, seed=0):
    numbers = torch.rand(images, 500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda which: numbers[:, : which if isinstance(which, int) else None][:, slice(*_ends(which))]


def _ends(which):
    return (0, which) if isinstance(which, int) else (which[0], which[-1] + 1)


@pytest.mark.parametrize(("share", "count"), [(0.05, 1), (0.25, 10), (1.0, 42)])
def test_places_are_masked_ones_each_at_most_once(share, count):
    draw = uniform(200)
    mask = inverse_block_mask(draw, (8, 8), 0.65)
    places = chosen_places(draw, mask, share)
    assert places.shape == (200, max(count, round(share * 42)))
    assert mask.gather(1, places).all()
    assert all(len(set(row)) == len(row) for row in places.tolist())


def test_every_masked_place_is_chosen_equally_often():
    mask = torch.zeros(4000, 10, dtype=torch.bool)
    mask[:, [1, 4, 5, 9]] = True
    places = chosen_places(uniform(4000), mask, 0.25)
    counts = torch.bincount(places.flatten(), minlength=10)
    assert counts[[0, 2, 3, 6, 7, 8]].sum() == 0
    assert ((counts[[1, 4, 5, 9]] / 4000 - 0.25).abs() < 0.03).all()


def test_the_choice_is_independent_of_the_mask():
    """It begins behind the three numbers that the mask is a function of."""
    asked = []

    def draw(which):
        asked.append(_ends(which))
        return uniform(2)(which)

    mask = inverse_block_mask(draw, (4, 4), 0.5)
    chosen_places(draw, mask, 0.5)
    assert asked[1][0] >= asked[0][1]
