"""Barlow Twins, VICReg and VIbCReg against loops over floats with gradients by hand, closed forms and invariances."""

import math

import pytest
import torch
from slopes import slopes

from selfsup.functional import barlow_twins_loss, vibcreg_loss, vicreg_loss


def column(rows, d):
    return [row[d] for row in rows]


def mean(values):
    return math.fsum(values) / len(values)


def loop_barlow_twins(z1, z2, weight, eps):
    """Value and gradients: the loss of each pair of dimensions, then back through the two standardisations."""
    count, dim = z1.shape
    bars, scales, slopes = [], [], []
    for z in (z1.tolist(), z2.tolist()):
        centred = [[x - mean(column(z, d)) for x in column(z, d)] for d in range(dim)]
        scales.append([1 / math.sqrt(mean([x * x for x in c]) + eps) for c in centred])
        bars.append([[x * s for x in c] for c, s in zip(centred, scales[-1], strict=True)])  # one list a dimension
        slopes.append([[0.0] * count for _ in range(dim)])
    total = 0.0
    for i in range(dim):
        for j in range(dim):
            correlation = mean([a * b for a, b in zip(bars[0][i], bars[1][j], strict=True)])
            if i == j:
                total += (1 - correlation) ** 2
                outer = -2 * (1 - correlation)
            else:
                total += weight * correlation**2
                outer = 2 * weight * correlation
            for n in range(count):
                slopes[0][i][n] += outer * bars[1][j][n] / count
                slopes[1][j][n] += outer * bars[0][i][n] / count
    gradients = []
    for bar, scale, slope in zip(bars, scales, slopes, strict=True):
        columns = []
        for d in range(dim):  # d bar_m / d z_n = scale · (δ_mn - 1/N - bar_m bar_n / N)
            average = mean(slope[d])
            along = mean([g * b for g, b in zip(slope[d], bar[d], strict=True)])
            columns.append([scale[d] * (g - average - along * b) for g, b in zip(slope[d], bar[d], strict=True)])
        gradients.append(torch.tensor(columns, dtype=torch.float64).T)
    return total, *gradients


def loop_vicreg(z1, z2, weights, eps):
    """Value and gradients of the three terms, entry by entry."""
    invariance, variance, covariance = weights
    count, dim = z1.shape
    rows = [z1.tolist(), z2.tolist()]
    total = 0.0
    gradients = [torch.zeros(count, dim, dtype=torch.float64) for _ in rows]
    for n in range(count):
        for d in range(dim):
            difference = rows[0][n][d] - rows[1][n][d]
            total += invariance * difference**2 / (count * dim)
            gradients[0][n, d] += 2 * invariance * difference / (count * dim)
            gradients[1][n, d] -= 2 * invariance * difference / (count * dim)
    for z, gradient in zip(rows, gradients, strict=True):
        centred = [[x - mean(column(z, d)) for x in column(z, d)] for d in range(dim)]
        for d in range(dim):
            spread = math.sqrt(math.fsum(x * x for x in centred[d]) / (count - 1) + eps)
            if spread < 1:
                total += variance * (1 - spread) / dim / 2
                for n in range(count):  # d spread / d z_n = centred_n / ((N - 1) spread)
                    gradient[n, d] -= variance / dim / 2 * centred[d][n] / ((count - 1) * spread)
            for other in range(dim):
                if other == d:
                    continue
                entry = math.fsum(a * b for a, b in zip(centred[d], centred[other], strict=True)) / (count - 1)
                total += covariance * entry**2 / dim
                for n in range(count):  # the entry is met twice, as (d, other) and (other, d)
                    gradient[n, d] += 2 * 2 * covariance / dim * entry * centred[other][n] / (count - 1)
    return total, *gradients


def loop_vibcreg(z1, z2, weights, eps):
    """Value, entry by entry."""
    invariance, variance, covariance = weights
    count, dim = z1.shape
    total = invariance * mean([(z1[n, d].item() - z2[n, d].item()) ** 2 for n in range(count) for d in range(dim)])
    for z in (z1, z2):
        centred = [[x - mean(column(z.tolist(), d)) for x in column(z.tolist(), d)] for d in range(dim)]
        lengths = [math.sqrt(math.fsum(x * x for x in c)) for c in centred]
        for d in range(dim):
            total += variance * max(0.0, 1 - math.sqrt(lengths[d] ** 2 / (count - 1) + eps)) / dim / 2
            for other in range(dim):
                if other != d:
                    shared = math.fsum(a * b for a, b in zip(centred[d], centred[other], strict=True))
                    total += covariance * (shared / lengths[d] / lengths[other]) ** 2 / dim**2
    return total


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rotation(dim, seed=9):
    return torch.linalg.qr(random(dim, dim, seed=seed))[0]


def orthonormal_columns(count, dim):
    """Zero mean, biased variance 1, no correlation: centred columns of an orthogonal basis."""
    basis = torch.linalg.qr(torch.cat([torch.ones(count, 1, dtype=torch.float64), random(count, dim)], dim=1))[0]
    return basis[:, 1:] * count**0.5


SHAPES = [(2, 1), (3, 4), (9, 5), (16, 2)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("count", "dim"), SHAPES)
@pytest.mark.parametrize("weight", [0.0051, 1.0])
def test_barlow_twins_is_the_loop_in_value_and_gradient(count, dim, weight, dtype, tolerance):
    z1, z2 = random(count, dim), 2 * random(count, dim, seed=1) + 1
    value, *gradients = loop_barlow_twins(z1, z2, weight, 1e-3)
    leaves = [z.to(dtype).requires_grad_() for z in (z1, z2)]
    loss = barlow_twins_loss(*leaves, weight, eps=1e-3)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("count", "dim"), SHAPES)
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 3.0), (0.0, 2.0, 0.0)])
def test_vicreg_is_the_loop_in_value_and_gradient(count, dim, weights, dtype, tolerance):
    z1, z2 = 0.6 * random(count, dim) + 2, 1.4 * random(count, dim, seed=1)
    value, *gradients = loop_vicreg(z1, z2, weights, 1e-4)
    leaves = [z.to(dtype).requires_grad_() for z in (z1, z2)]
    loss = vicreg_loss(*leaves, *weights)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("count", "dim"), [(3, 1), (9, 5), (4, 6)])
@pytest.mark.parametrize("weights", [(25.0, 25.0, 200.0), (0.0, 2.0, 0.0), (1.0, 0.0, 3.0)])
def test_vibcreg_is_the_loop_in_value_and_gradient(count, dim, weights):
    z1, z2 = 0.6 * random(count, dim) + 2, 1.4 * random(count, dim, seed=1)
    leaves = [z.clone().requires_grad_() for z in (z1, z2)]
    loss = vibcreg_loss(*leaves, *weights)
    loss.backward()
    assert loss.item() == pytest.approx(loop_vibcreg(z1, z2, weights, 1e-4), rel=1e-11)
    found = slopes(lambda a, b: loop_vibcreg(a, b, weights, 1e-4), z1, z2)
    for leaf, gradient in zip(leaves, found, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-6, atol=1e-7)
    assert vibcreg_loss(z1.float(), z2.float(), *weights).item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)


def test_gradcheck():
    z1, z2 = random(6, 3).requires_grad_(), 0.5 * random(6, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(vibcreg_loss, (z1, z2))
    assert torch.autograd.gradcheck(barlow_twins_loss, (z1, z2))
    assert torch.autograd.gradcheck(vicreg_loss, (z1, z2))


# closed forms


def test_barlow_twins_of_equal_uncorrelated_views_is_zero_and_of_opposite_ones_is_four_a_dimension():
    z = orthonormal_columns(12, 5)
    assert barlow_twins_loss(z, 3 * z + 1, eps=0.0).item() == pytest.approx(0, abs=1e-20)
    assert barlow_twins_loss(z, -z, eps=0.0).item() == pytest.approx(4 * 5, rel=1e-12)
    assert barlow_twins_loss(z[:, :2], z[:, 2:4], eps=0.0).item() == pytest.approx(2, rel=1e-12)


def test_barlow_twins_of_repeated_dimensions_pays_for_every_pair():
    z = random(20, 1).expand(20, 6)
    assert barlow_twins_loss(z, z, 0.0051, eps=0.0).item() == pytest.approx(0.0051 * 30, rel=1e-10)


def test_barlow_twins_of_collapsed_views_is_one_a_dimension():
    """A constant dimension correlates with nothing, and eps keeps it finite."""
    z = torch.ones(8, 6).requires_grad_()
    loss = barlow_twins_loss(z, z)
    loss.backward()
    assert loss.item() == 6
    assert z.grad.isfinite().all()


def test_vicreg_of_equal_uncorrelated_spread_views_is_zero():
    z = 2 * orthonormal_columns(12, 5)
    assert vicreg_loss(z, z).item() == pytest.approx(0, abs=1e-20)
    # moved apart, only the first term stays
    assert vicreg_loss(z, z + 3).item() == pytest.approx(25 * 9, rel=1e-12)
    # squeezed to variance v, only the hinge: half of each view's
    squeezed = z * 0.25 * (11 / 12) ** 0.5  # unbiased variance 1/4
    assert vicreg_loss(squeezed, squeezed).item() == pytest.approx(25 * (1 - math.sqrt(0.25 + 1e-4)), rel=1e-12)


def test_vicreg_of_collapsed_views_is_the_hinge_and_its_gradient_is_finite():
    z = torch.ones(8, 6).requires_grad_()
    loss = vicreg_loss(z, z)
    loss.backward()
    assert loss.item() == pytest.approx(25 * (1 - 0.01), rel=1e-6)
    assert z.grad.isfinite().all()


def test_vicreg_of_repeated_dimensions_pays_for_every_pair():
    z = random(20, 1).expand(20, 6)
    z = 2 * z / z.std(0)
    assert vicreg_loss(z, z).item() == pytest.approx(2 * 30 * 16 / 6, rel=1e-10)


def test_vibcreg_of_repeated_dimensions_pays_one_for_every_pair_at_any_scale():
    z = random(20, 1).expand(20, 6)
    z = 2 * z / z.std(0)
    assert vibcreg_loss(z, z).item() == pytest.approx(2 * 200 * 30 / 36, rel=1e-10)
    assert vibcreg_loss(7 * z, 7 * z).item() == pytest.approx(2 * 200 * 30 / 36, rel=1e-10)


def test_vibcreg_of_collapsed_views_is_the_hinge_and_its_gradient_is_finite():
    z = torch.ones(8, 6).requires_grad_()
    loss = vibcreg_loss(z, z)
    loss.backward()
    assert loss.item() == pytest.approx(25 * (1 - 0.01), rel=1e-6)
    assert z.grad.isfinite().all()


# invariances


def test_image_order_and_which_view_is_first_do_not_matter():
    z1, z2 = random(9, 4), random(9, 4, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    for loss in (barlow_twins_loss, vicreg_loss, vibcreg_loss):
        value = loss(z1, z2)
        torch.testing.assert_close(loss(z1[order], z2[order]), value)
        torch.testing.assert_close(loss(z2, z1), value)
        assert abs(loss(z1.roll(1, 0), z2) - value) > 1e-3


def test_what_each_loss_sees_of_scale_and_rotation():
    z1, z2 = random(40, 4), random(40, 4, seed=1)
    scale, shift, turn = random(4, seed=2).exp(), random(4, seed=3), rotation(4)
    value = barlow_twins_loss(z1, z2, eps=0.0)
    torch.testing.assert_close(barlow_twins_loss(z1 * scale + shift, z2, eps=0.0), value)
    assert abs(barlow_twins_loss(z1 @ turn, z2 @ turn, eps=0.0) - value) > 1e-3
    # invariance alone sees lengths and no rotation; variance and covariance see no shift
    torch.testing.assert_close(vicreg_loss(z1 @ turn, z2 @ turn, 1, 0, 0), vicreg_loss(z1, z2, 1, 0, 0))
    torch.testing.assert_close(vicreg_loss(z1 + shift, z2 - shift, 0, 1, 1), vicreg_loss(z1, z2, 0, 1, 1))
    assert abs(vicreg_loss(2 * z1, 2 * z2, 0, 0, 1) / vicreg_loss(z1, z2, 0, 0, 1) - 16) < 1e-9


def test_a_doubled_batch_has_the_same_correlation():
    """The real number of images divides, whatever the nominal batch is."""
    z1, z2 = random(7, 3), random(7, 3, seed=1)
    torch.testing.assert_close(barlow_twins_loss(z1.repeat(2, 1), z2.repeat(2, 1)), barlow_twins_loss(z1, z2))


# precision and shapes


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32_under_autocast(half):
    z1, z2 = random(16, 8, dtype=half).requires_grad_(), random(16, 8, seed=1, dtype=half).requires_grad_()
    for function in (barlow_twins_loss, vicreg_loss, vibcreg_loss):
        with torch.autocast("cpu", dtype=half):
            loss = function(z1, z2)
            wide_inside = function(z1.detach().float(), z2.detach().float())
        assert loss.dtype == torch.float32
        assert loss.item() == wide_inside.item() == function(z1.detach().float(), z2.detach().float()).item()
        loss.backward()
        assert z1.grad.dtype == half


@pytest.mark.parametrize("function", [barlow_twins_loss, vicreg_loss, vibcreg_loss])
@pytest.mark.parametrize(
    "shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,)), ((2, 4, 3), (2, 4, 3)), ((1, 3),) * 2]
)
def test_shapes_that_do_not_fit_are_refused(function, shapes):
    with pytest.raises(ValueError, match=function.__name__):
        function(*(torch.ones(shape) for shape in shapes))
