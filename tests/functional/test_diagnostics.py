import math

import pytest
import torch

from selfsup.functional import diagnostics
from selfsup.functional.arguments import trusted_values
from selfsup.functional.diagnostics import alignment, feature_std, rank_me, uniformity


def unit(row):
    return [x / math.sqrt(sum(float(y) ** 2 for y in row)) for x in row]


def loop_alignment(z1, z2, alpha):
    total = 0.0
    for a, b in zip(z1.tolist(), z2.tolist(), strict=True):
        total += sum((x - y) ** 2 for x, y in zip(unit(a), unit(b), strict=True)) ** (alpha / 2)
    return total / len(z1)


def loop_uniformity(z, t):
    rows = [unit(row) for row in z.tolist()]
    kernel = [
        math.exp(-t * sum((x - y) ** 2 for x, y in zip(rows[i], rows[j], strict=True)))
        for i in range(len(rows))
        for j in range(len(rows))
        if i != j
    ]
    return math.log(sum(kernel) / len(kernel))


def numeric_gradient(function, z, step=1e-6):
    gradient = torch.zeros_like(z)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            up, down = z.clone(), z.clone()
            up[i, j] += step
            down[i, j] -= step
            gradient[i, j] = (function(up) - function(down)) / (2 * step)
    return gradient


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("count", "dim", "alpha"), [(1, 3, 2), (5, 4, 2), (7, 2, 1), (6, 3, 3)])
def test_alignment_is_the_loop(count, dim, alpha):
    z1, z2 = random(count, dim), random(count, dim, seed=1)
    z1.requires_grad_()
    value = alignment(z1, z2, alpha)
    value.backward()
    assert value.item() == pytest.approx(loop_alignment(z1.detach(), z2, alpha), rel=1e-12)
    torch.testing.assert_close(
        z1.grad, numeric_gradient(lambda z: loop_alignment(z, z2, alpha), z1.detach()), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize(("count", "dim", "t"), [(2, 3, 2), (5, 4, 2), (8, 2, 0.5), (7, 3, 5)])
@pytest.mark.parametrize("block", [1, 3, 2048])
def test_uniformity_is_the_loop(monkeypatch, count, dim, t, block):
    monkeypatch.setattr(diagnostics, "BLOCK", block)
    z = random(count, dim).requires_grad_()
    value = uniformity(z, t)
    value.backward()
    assert value.item() == pytest.approx(loop_uniformity(z.detach(), t), rel=1e-12)
    torch.testing.assert_close(
        z.grad, numeric_gradient(lambda x: loop_uniformity(x, t), z.detach()), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_closed_forms(dtype):
    basis = 3 * torch.eye(16, dtype=dtype)
    line = random(1, 8, dtype=dtype) * torch.linspace(1, 2, 10, dtype=dtype)[:, None]
    assert uniformity(basis).item() == pytest.approx(-4, abs=1e-5)
    assert uniformity(line).item() == pytest.approx(0, abs=1e-5)
    assert alignment(line, 5 * line).item() == pytest.approx(0, abs=1e-5)
    assert alignment(basis, -basis).item() == pytest.approx(4, abs=1e-5)
    assert alignment(basis, basis.roll(1, 0), alpha=1).item() == pytest.approx(math.sqrt(2), abs=1e-5)
    assert rank_me(basis).item() == pytest.approx(16, abs=1e-3)
    assert rank_me(line).item() == pytest.approx(1, abs=1e-3)
    assert feature_std(line).item() == pytest.approx(0, abs=1e-6)
    assert feature_std(torch.cat([basis, -basis])).item() == pytest.approx(math.sqrt(1 / 16), abs=1e-6)
    assert uniformity(basis).dtype == rank_me(basis).dtype == feature_std(basis).dtype == dtype


def test_rank_me_takes_the_singular_values_as_they_come():
    features = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rank_me(features).item() == pytest.approx(math.exp(entropy), rel=1e-5)
    # neither centred nor normalised: a common offset adds its direction
    assert rank_me(features + 100).item() < 1.2


def test_rank_me_gradient():
    assert torch.autograd.gradcheck(rank_me, random(5, 3).requires_grad_())


def test_collapse_to_zero_has_no_rank_and_in_training_a_finite_one():
    with pytest.raises(ValueError, match="features are all zero"):
        rank_me(torch.zeros(6, 4))
    with trusted_values():
        assert rank_me(torch.zeros(6, 4)).item() == pytest.approx(1, abs=1e-3)


def test_scale_rotation_and_order_do_not_matter():
    z = random(9, 5)
    rotation = torch.linalg.qr(random(5, 5, seed=2))[0]
    changed = (z * torch.linspace(0.5, 4, 9, dtype=z.dtype)[:, None])[torch.randperm(9)] @ rotation
    assert uniformity(changed).item() == pytest.approx(uniformity(z).item(), rel=1e-10)


def test_identical_views_have_a_finite_gradient():
    z = random(4, 3).requires_grad_()
    alignment(z, z.detach(), alpha=1).backward()
    assert torch.isfinite(z.grad).all()


def test_half_precision_is_computed_in_float32():
    z = random(6, 4, dtype=torch.float32).bfloat16()
    assert uniformity(z).dtype == torch.float32
    assert uniformity(z).item() == pytest.approx(loop_uniformity(z.float(), 2), abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert uniformity(z.float()).item() == pytest.approx(loop_uniformity(z.float(), 2), abs=1e-5)


def test_what_cannot_be_measured_raises():
    with pytest.raises(ValueError, match="two rows"):
        uniformity(torch.ones(1, 3))
    with pytest.raises(ValueError, match="shape"):
        alignment(torch.ones(2, 3), torch.ones(3, 3))
