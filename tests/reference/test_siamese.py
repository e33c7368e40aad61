"""Codes, their prediction and the prior of MSN and PMSN against loops over floats, closed forms and limits."""

import math

import pytest
import torch
from slopes import slopes

from selfsup.functional import code_prediction, prior_divergence, sharpened_codes, sinkhorn


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def softmax(row, temperature):
    powers = [math.exp(x / temperature) for x in row]
    return [p / math.fsum(powers) for p in powers]


def loop_codes(scores, temperature, sharpening, iterations):
    """Sharpen each row, then give prototypes and samples their shares in turn."""
    rows = []
    for row in scores.tolist():
        sharp = [p ** (1 / sharpening) for p in softmax(row, temperature)]
        rows.append([p / math.fsum(sharp) for p in sharp])
    for _ in range(iterations):
        use = [math.fsum(column) for column in zip(*rows, strict=True)]
        rows = [[p / u for p, u in zip(row, use, strict=True)] for row in rows]
        rows = [[p / math.fsum(row) for p in row] for row in rows]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("images", "prototypes"), [(1, 3), (6, 4), (3, 8)])
@pytest.mark.parametrize(("temperature", "sharpening", "iterations"), [(0.1, 0.25, 3), (0.5, 1.0, 1), (0.3, 0.5, 0)])
def test_codes_are_the_loop(images, prototypes, temperature, sharpening, iterations):
    scores = random(images, prototypes).tanh()
    found = sharpened_codes(scores.requires_grad_(), temperature, sharpening, iterations)
    torch.testing.assert_close(found, loop_codes(scores, temperature, sharpening, iterations), rtol=1e-10, atol=1e-14)
    assert not found.requires_grad
    single = sharpened_codes(scores.float(), temperature, sharpening, iterations)
    torch.testing.assert_close(single.double(), found, rtol=1e-3, atol=1e-5)


def test_sinkhorn_begins_at_what_is_sharpened_and_not_at_the_scores():
    """Rows that are normalised first end elsewhere, as columns come first."""
    scores = random(5, 4).tanh()
    assert not torch.allclose(sharpened_codes(scores, 0.1, 1.0, 1), sinkhorn(scores, 0.1, 1), atol=1e-3)


def test_a_sharpening_of_one_without_rounds_leaves_the_assignment():
    scores = random(5, 4).tanh()
    torch.testing.assert_close(sharpened_codes(scores, 0.1, 1.0, 0), (scores / 0.1).softmax(1))


def loop_prediction(scores, codes, temperature):
    total = 0.0
    for view in scores.tolist():
        for row, code in zip(view, codes.tolist(), strict=True):
            shares = softmax(row, temperature)
            total -= math.fsum(q * math.log(p) for q, p in zip(code, shares, strict=True))
    return total / (scores.shape[0] * scores.shape[1])


@pytest.mark.parametrize(("views", "images", "prototypes"), [(1, 1, 2), (3, 4, 5)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_prediction_is_the_loop_in_value_and_gradient(views, images, prototypes, temperature):
    scores, codes = random(views, images, prototypes).tanh(), random(images, prototypes, seed=1).softmax(1)
    leaf, target = scores.clone().requires_grad_(), codes.clone().requires_grad_()
    loss = code_prediction(leaf, target, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(loop_prediction(scores, codes, temperature), rel=1e-12)
    (slope,) = slopes(lambda s: loop_prediction(s, codes, temperature), scores)
    torch.testing.assert_close(leaf.grad, slope, rtol=1e-6, atol=1e-8)
    assert target.grad is None


def test_an_anchor_that_is_its_target_costs_the_entropy():
    scores = random(6, 5).tanh()
    codes = sharpened_codes(scores, 0.2, 1.0, 0)
    assert code_prediction(scores[None], codes, 0.2).item() == pytest.approx(
        torch.special.entr(codes).sum(1).mean().item(), rel=1e-12
    )


def loop_divergence(scores, temperature, exponent):
    shares = [softmax(row, temperature) for row in scores.tolist()]
    mean = [math.fsum(column) / len(shares) for column in zip(*shares, strict=True)]
    powers = [k**-exponent for k in range(1, len(mean) + 1)]
    prior = [p / math.fsum(powers) for p in powers]
    return math.fsum(p * math.log(p / wanted) for p, wanted in zip(mean, prior, strict=True))


@pytest.mark.parametrize(("rows", "prototypes"), [(1, 2), (7, 5), (2, 9)])
@pytest.mark.parametrize(("temperature", "exponent"), [(0.1, 0.0), (0.1, 0.25), (1.0, 1.5)])
def test_divergence_is_the_loop_in_value_and_gradient(rows, prototypes, temperature, exponent):
    scores = random(rows, prototypes).tanh()
    leaf = scores.clone().requires_grad_()
    loss = prior_divergence(leaf, temperature, exponent)
    loss.backward()
    assert loss.item() == pytest.approx(loop_divergence(scores, temperature, exponent), rel=1e-10, abs=1e-14)
    (slope,) = slopes(lambda s: loop_divergence(s, temperature, exponent), scores)
    torch.testing.assert_close(leaf.grad, slope, rtol=1e-6, atol=1e-8)
    assert prior_divergence(scores.float(), temperature, exponent).item() == pytest.approx(loss.item(), abs=1e-4)


def test_even_use_costs_nothing_and_a_single_prototype_the_logarithm():
    assert prior_divergence(torch.zeros(3, 8), 0.1).item() == pytest.approx(0, abs=1e-6)
    spread = 100 * torch.eye(8, dtype=torch.float64)
    assert prior_divergence(spread, 0.1).item() == pytest.approx(0, abs=1e-12)  # each sharp, together even
    assert prior_divergence(spread[:1].repeat(5, 1), 0.1).item() == pytest.approx(math.log(8), rel=1e-12)


def test_the_power_law_itself_costs_nothing_and_falls_with_the_number_of_the_prototype():
    prior = torch.arange(1, 7, dtype=torch.float64) ** -0.25
    assert prior_divergence((0.1 * prior.log())[None], 0.1, 0.25).item() == pytest.approx(0, abs=1e-12)
    assert prior_divergence((0.1 * prior.flip(0).log())[None], 0.1, 0.25).item() > 1e-2


def test_a_prototype_that_nothing_is_near_leaves_the_gradient_finite():
    scores = torch.tensor([[0.0, -1e4]], requires_grad=True)
    loss = prior_divergence(scores, 0.1, 0.25)
    loss.backward()
    assert loss.isfinite()
    assert scores.grad.isfinite().all()
