"""All4One's feature term against plain loops with derivatives by hand, and the search for several neighbours."""

import itertools
import math

import pytest
import torch
from test_whitening import duals, lift, random

from selfsup.functional import feature_loss, nearest_neighbor, nearest_neighbors


def loop(z1, z2, t1, t2):
    def columns(rows):
        found = [list(column) for column in zip(*rows, strict=True)]
        lengths = [sum((x * x for x in column), lift(0.0)).root() for column in found]
        return [[x / length for x in column] for column, length in zip(found, lengths, strict=True)]

    own, others = lift(0.0), lift(0.0)
    for target, embedding in ((t1, z2), (t2, z1)):
        a, b = columns(target), columns(embedding)
        for i, j in itertools.product(range(len(a)), repeat=2):
            c = sum((x * y for x, y in zip(a[i], b[j], strict=True)), lift(0.0))
            if i == j:
                own = own + (c - 1.0) * (c - 1.0) / len(a)
            else:
                others = others + c * c / (len(a) * (len(a) - 1))
    return (own * 0.5).root() * 0.5 + (others * 0.5).root() * 0.5


@pytest.mark.parametrize(("count", "dim"), [(2, 2), (5, 3), (3, 6)])
def test_the_feature_loss_is_the_loop_in_value_and_gradient(count, dim):
    tensors = [random(count, dim, seed=seed) for seed in range(4)]
    leaves = [x.clone().requires_grad_() for x in tensors]
    loss = feature_loss((leaves[0], leaves[1]), (leaves[2], leaves[3]))
    loss.backward()
    for side, leaf in enumerate(leaves):
        for place in itertools.product(range(count), range(dim)):
            steps = [torch.zeros_like(x) for x in tensors]
            steps[side][place] = 1
            expected = loop(*(duals(x, step) for x, step in zip(tensors, steps, strict=True)))
            assert leaf.grad[place].item() == pytest.approx(expected.slope, rel=1e-8, abs=1e-10)
    assert loss.item() == pytest.approx(expected.value, rel=1e-11)


def test_orthogonal_features_that_agree_cost_nothing_and_have_a_finite_gradient():
    z = torch.eye(4, dtype=torch.float64).requires_grad_()
    loss = feature_loss((z, z), (z.detach(), z.detach()))
    loss.backward()
    assert loss.item() < 1e-100
    assert bool(z.grad.isfinite().all())


def test_equal_features_cost_half():
    """Every correlation is 1: nothing on the diagonal, a root of 1 off it."""
    z = random(5, 1).expand(-1, 3)
    assert feature_loss((z, z), (z, z)).item() == pytest.approx(0.5)
    assert feature_loss((z, z), (-z, -z)).item() == pytest.approx((2 + 1) / 2)


def test_half_precision_and_mistakes():
    z = random(4, 3).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert feature_loss((z, z), (z, z)).dtype == torch.float32
    with pytest.raises(ValueError, match="two features or more"):
        feature_loss((random(4, 1),) * 2, (random(4, 1),) * 2)
    with pytest.raises(ValueError, match=r"feature_loss: t2 \[N,D\] has the shape \[5, 3\]"):
        feature_loss((random(4, 3),) * 2, (random(4, 3), random(5, 3)))


@pytest.mark.parametrize(("count", "stored", "dim", "k"), [(1, 1, 2, 1), (4, 9, 3, 5), (3, 4, 8, 4)])
def test_neighbours_come_nearest_first(count, stored, dim, k):
    query, candidates = random(count, dim), random(stored, dim, seed=1)

    def cosine(a, b):
        return math.fsum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    found = nearest_neighbors(query, candidates, k)
    for row, near in zip(query.tolist(), found.tolist(), strict=True):
        assert near == sorted(candidates.tolist(), key=lambda c: -cosine(row, c))[:k]
    assert torch.equal(found[:, 0], nearest_neighbor(query, candidates))


def test_more_neighbours_than_there_are_cannot_be_found():
    with pytest.raises(ValueError, match="nearest_neighbors: 4 of 3 candidates"):
        nearest_neighbors(random(2, 3), random(3, 3), 4)
    with pytest.raises(ValueError, match="nearest_neighbors: k must be"):
        nearest_neighbors(random(2, 3), random(3, 3), 0)
