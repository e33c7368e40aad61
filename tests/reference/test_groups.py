"""SMoG's moving groups and their prediction against plain loops with derivatives by hand, and closed forms."""

import itertools
import math

import pytest
import torch
from test_whitening import Dual, duals, lift, random
from torch.nn.functional import normalize

from selfsup.functional import group_prediction, momentum_groups


def unit(row):
    length = sum((x * x for x in row), lift(0.0)).root()
    return [x / length for x in row]


def dot(a, b):
    return sum((x * y for x, y in zip(a, b, strict=True)), lift(0.0))


def nearest(row, groups):
    return max(range(len(groups)), key=lambda k: dot(row, groups[k]).value)


def loop_groups(z, groups, momentum):
    units = [unit(row) for row in z]
    assigned = [nearest(row, groups) for row in units]
    moved = []
    for k, old in enumerate(groups):
        own = [row for row, a in zip(units, assigned, strict=True) if a == k]
        if not own:
            moved.append(old)
            continue
        mean = [sum(column, lift(0.0)) / len(own) for column in zip(*own, strict=True)]
        moved.append(unit([o * momentum + m * (1 - momentum) for o, m in zip(old, mean, strict=True)]))
    return moved


def exponential(x):
    return Dual(math.exp(x.value), math.exp(x.value) * x.slope)


def logarithm(x):
    return Dual(math.log(x.value), x.slope / x.value)


def loop_loss(prediction, groups, target, temperature):
    total = lift(0.0)
    for row, products in zip(prediction, target, strict=True):
        logits = [dot(unit(row), g) / temperature for g in groups]
        own = max(range(len(products)), key=lambda k: products[k])
        total = total + logarithm(sum((exponential(x) for x in logits), lift(0.0))) - logits[own]
    return total / len(prediction)


@pytest.mark.parametrize(("count", "clusters", "dim", "momentum"), [(1, 2, 3, 0.5), (6, 3, 4, 0.9), (5, 9, 2, 0.0)])
def test_groups_and_their_slopes_are_the_loop_s(count, clusters, dim, momentum):
    z, groups = random(count, dim), normalize(random(clusters, dim, seed=1), dim=1)
    directions, weight = (random(count, dim, seed=2), random(clusters, dim, seed=3)), random(clusters, dim, seed=4)
    leaves = [z.clone().requires_grad_(), groups.clone().requires_grad_()]
    moved = momentum_groups(*leaves, momentum)
    expected = loop_groups(duals(z, directions[0]), duals(groups, directions[1]), momentum)
    values = torch.tensor([[e.value for e in row] for row in expected], dtype=torch.float64)
    slopes = torch.tensor([[e.slope for e in row] for row in expected], dtype=torch.float64)
    torch.testing.assert_close(moved, values, rtol=1e-11, atol=1e-12)
    gradients = torch.autograd.grad((moved * weight).sum(), leaves)
    along = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert along == pytest.approx(float((slopes * weight).sum()), rel=1e-9)


@pytest.mark.parametrize(("count", "clusters", "dim", "temperature"), [(1, 2, 3, 0.5), (4, 5, 3, 0.1), (3, 2, 6, 1.0)])
def test_the_prediction_is_the_loop_in_value_and_gradient(count, clusters, dim, temperature):
    prediction, groups = random(count, dim), normalize(random(clusters, dim, seed=1), dim=1)
    target = random(count, clusters, seed=2)
    leaves = [x.clone().requires_grad_() for x in (prediction, groups, target)]
    loss = group_prediction(*leaves, temperature)
    loss.backward()
    assert leaves[2].grad is None
    for side, x in enumerate((prediction, groups)):
        for place in itertools.product(*map(range, x.shape)):
            steps = [torch.zeros_like(prediction), torch.zeros_like(groups)]
            steps[side][place] = 1
            expected = loop_loss(duals(prediction, steps[0]), duals(groups, steps[1]), target.tolist(), temperature)
            assert leaves[side].grad[place].item() == pytest.approx(expected.slope, rel=1e-8, abs=1e-11)
    assert loss.item() == pytest.approx(expected.value, rel=1e-11)


def test_a_group_that_nothing_is_near_stays_and_the_others_have_length_one():
    groups = torch.eye(3, dtype=torch.float64)
    z = torch.tensor([[2.0, 1.0, 0.0], [5.0, 0.0, 0.0]], dtype=torch.float64)
    moved = momentum_groups(z, groups, 0.5)
    assert torch.equal(moved[1:], groups[1:])
    mean = (torch.tensor([2.0, 1.0, 0.0]) / math.sqrt(5) + torch.tensor([1.0, 0.0, 0.0])).double() / 2
    torch.testing.assert_close(moved[0], normalize(groups[0] / 2 + mean / 2, dim=0), rtol=1e-6, atol=1e-7)


def test_a_momentum_of_one_leaves_all_groups():
    groups = normalize(random(4, 3), dim=1)
    torch.testing.assert_close(momentum_groups(random(9, 3, seed=1), groups, 1.0), groups)


def test_half_precision_is_computed_in_float32():
    z, groups = random(6, 8).to(torch.bfloat16), normalize(random(3, 8, seed=1), dim=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = momentum_groups(z, groups, 0.9)
        loss = group_prediction(z, moved, z.float() @ groups.T, 0.1)
    assert moved.dtype == loss.dtype == torch.float32


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="momentum_groups: momentum must be"):
        momentum_groups(random(2, 3), random(2, 3), 1.5)
    with pytest.raises(ValueError, match=r"group_prediction: target \[N,K\] has the shape \[2, 4\]"):
        group_prediction(random(2, 3), random(5, 3), random(2, 4), 0.1)
