"""MEC's loss against powers of a matrix in plain loops, its closed form, and its limits."""

import itertools

import pytest
import torch
from test_whitening import duals, lift, random

from selfsup.functional import mec_loss, negative_cosine


def loop(prediction, target, weight, order):
    def unit(rows):
        lengths = [sum((x * x for x in row), lift(0.0)).root() for row in rows]
        return [[x / length for x in row] for row, length in zip(rows, lengths, strict=True)]

    z, p = unit(prediction), unit(target)
    size = len(z)
    matrix = [
        [sum((a * b for a, b in zip(p[i], z[j], strict=True)), lift(0.0)) * weight for j in range(size)]
        for i in range(size)
    ]
    power, total = matrix, lift(0.0)
    for k in range(1, order + 1):
        if k > 1:
            power = [
                [sum((power[i][m] * matrix[m][j] for m in range(size)), lift(0.0)) for j in range(size)]
                for i in range(size)
            ]
        trace = sum((power[i][i] for i in range(size)), lift(0.0))
        total = total + trace * ((1.0 if k % 2 else -1.0) / k)
    return total * (-1.0 / (weight * size))


@pytest.mark.parametrize(
    ("count", "dim", "weight", "order"), [(1, 2, 0.5, 4), (3, 4, 0.2, 1), (4, 3, 0.1, 4), (3, 5, 2.0, 5)]
)
def test_value_and_gradients_are_the_loop_s(count, dim, weight, order):
    prediction, target = random(count, dim), random(count, dim, seed=1)
    leaves = [x.clone().requires_grad_() for x in (prediction, target)]
    loss = mec_loss(*leaves, weight, order)
    loss.backward()
    for side, leaf in enumerate(leaves):
        for place in itertools.product(range(count), range(dim)):
            directions = [torch.zeros_like(prediction), torch.zeros_like(prediction)]
            directions[side][place] = 1
            expected = loop(duals(prediction, directions[0]), duals(target, directions[1]), weight, order)
            assert leaf.grad[place].item() == pytest.approx(expected.slope, rel=1e-9, abs=1e-11)
    assert loss.item() == pytest.approx(expected.value, rel=1e-11)


def test_it_expands_the_logarithm_of_the_determinant():
    prediction, target = random(8, 5), random(8, 5, seed=1)
    z, p = (torch.nn.functional.normalize(x, dim=1) for x in (prediction, target))
    weight = 1 / 64
    exact = -torch.logdet(torch.eye(8, dtype=torch.float64) + weight * p @ z.T) / (weight * 8)
    errors = [abs(float(mec_loss(prediction, target, weight, order) - exact)) for order in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 1e-4
    assert errors[3] < 1e-9


def test_the_first_order_is_the_negative_cosine():
    prediction, target = random(6, 4), random(6, 4, seed=1)
    torch.testing.assert_close(mec_loss(prediction, target, 0.3, 1), negative_cosine(prediction, target))


def test_collapse_costs_more_than_views_that_agree_and_samples_that_differ():
    spread, same = torch.eye(6, dtype=torch.float64), torch.ones(6, 6, dtype=torch.float64)
    weight = 1 / 24
    best = -(weight - weight**2 / 2 + weight**3 / 3 - weight**4 / 4) / weight
    assert mec_loss(spread, spread, weight).item() == pytest.approx(best)
    mu = 6 * weight  # the one singular value
    worst = -(mu - mu**2 / 2 + mu**3 / 3 - mu**4 / 4) / (weight * 6)
    assert mec_loss(same, same, weight).item() == pytest.approx(worst)
    assert worst > best


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    prediction, target = random(6, 8).to(half), random(6, 8, seed=1).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mec_loss(prediction, target, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(mec_loss(prediction.double(), target.double(), 0.1).item(), rel=1e-5)


@pytest.mark.parametrize("bad", [{"weight": 0.0}, {"weight": 0.1, "order": 0}])
def test_settings_that_cannot_be_are_named(bad):
    with pytest.raises(ValueError, match=f"mec_loss: {list(bad)[-1]} must be"):
        mec_loss(random(2, 3), random(2, 3), **bad)
