"""The negative cosine of BYOL and SimSiam against a plain Python loop, closed forms and invariances."""

import math

import pytest
import torch

from selfsup.functional import negative_cosine


def loop(prediction, target):
    """Value and gradients, one image at a time: d cos / d p = (ẑ - cos · p̂) / |p|."""
    count, total = len(prediction), 0.0
    to_prediction, to_target = [], []
    for p, z in zip(prediction.tolist(), target.tolist(), strict=True):
        p_length, z_length = (math.sqrt(math.fsum(x * x for x in row)) for row in (p, z))
        cosine = math.fsum(a * b for a, b in zip(p, z, strict=True)) / (p_length * z_length)
        total -= cosine / count
        pairs = list(zip(p, z, strict=True))
        to_prediction.append([-(b / z_length - cosine * a / p_length) / (p_length * count) for a, b in pairs])
        to_target.append([-(a / p_length - cosine * b / z_length) / (z_length * count) for a, b in pairs])
    return total, torch.tensor(to_prediction, dtype=torch.float64), torch.tensor(to_target, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize(("count", "dim"), [(1, 2), (2, 7), (5, 3), (16, 64)])
def test_value_and_gradient_are_the_loop(count, dim, dtype, tolerance):
    prediction, target = random(count, dim), 3 * random(count, dim, seed=1)
    value, *gradients = loop(prediction, target)
    p, z = prediction.to(dtype).requires_grad_(), target.to(dtype).requires_grad_()
    loss = negative_cosine(p, z)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    for leaf, gradient in zip((p, z), gradients, strict=True):
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=10 * tolerance, atol=10 * tolerance)


def test_gradcheck():
    assert torch.autograd.gradcheck(negative_cosine, (random(3, 4).requires_grad_(), random(3, 4).requires_grad_()))


@pytest.mark.parametrize("count", [1, 3])
def test_closed_forms(count):
    basis = torch.eye(count, 2 * count, dtype=torch.float64)
    assert negative_cosine(basis, 5 * basis).item() == pytest.approx(-1, abs=1e-15)
    assert negative_cosine(basis, -2 * basis).item() == pytest.approx(1, abs=1e-15)
    assert negative_cosine(basis, basis.roll(count, 1)).item() == 0
    tilted = basis + math.sqrt(3) * basis.roll(count, 1)  # 60 degrees away
    assert negative_cosine(tilted, basis).item() == pytest.approx(-0.5, abs=1e-15)


@pytest.mark.parametrize("shape", [(1, 4), (6, 3)])
def test_byol_distance_of_the_normalised_vectors(shape):
    """BYOL's equation 2, written with norms."""
    p, z = random(*shape), random(*shape, seed=1)
    distance = (p / p.norm(dim=1, keepdim=True) - z / z.norm(dim=1, keepdim=True)).pow(2).sum(1).mean()
    assert (2 + 2 * negative_cosine(p, z)).item() == pytest.approx(distance.item(), rel=1e-12)


def test_invariances():
    p, z = random(6, 5), random(6, 5, seed=1)
    value = negative_cosine(p, z).item()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    turn = torch.linalg.qr(random(5, 5, seed=3))[0]
    lengths = random(6, 1, seed=4).exp()
    for same in [(z, p), (p[order], z[order]), (p @ turn, z @ turn), (p * lengths, z / lengths)]:
        assert negative_cosine(*same).item() == pytest.approx(value, rel=1e-12)
    assert abs(negative_cosine(p, z.roll(1, 0)).item() - value) > 1e-3


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32_under_autocast(half):
    p, z = random(6, 32).to(half).requires_grad_(), random(6, 32, seed=1).to(half)
    with torch.autocast("cpu", dtype=half):
        loss = negative_cosine(p, z)
    assert loss.dtype == torch.float32
    assert loss.item() == negative_cosine(p.detach().float(), z.float()).item()
    assert loss.item() == pytest.approx(loop(p.detach().double(), z.double())[0], abs=1e-6)
    loss.backward()
    assert p.grad.dtype == half


def test_large_half_values_do_not_overflow():
    p = torch.full((2, 8), 6e4, dtype=torch.float16)  # the sum of squares is beyond float16
    assert negative_cosine(p, p).item() == pytest.approx(-1, abs=1e-6)


def test_zero_vectors_give_no_nan():
    p, z = torch.zeros(2, 4, requires_grad=True), torch.ones(2, 4)
    loss = negative_cosine(p, z)
    loss.backward()
    assert loss.item() == 0
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,)), ((2, 4, 3), (2, 4, 3))])
def test_refuses_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match="negative_cosine"):
        negative_cosine(*(torch.ones(shape) for shape in shapes))
