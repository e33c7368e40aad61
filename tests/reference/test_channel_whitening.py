"""Whitening over channels, CW-RGP and INTL, against matrix arithmetic in plain Python with derivatives by hand."""

import itertools
import math

import pytest
import torch
from test_whitening import Dual, duals, lift, random, seeded

from selfsup.functional import channel_whiten, channel_whitening_mse, intl_loss, iterative_whiten


def product(a, b):
    return [
        [sum((x * y for x, y in zip(row, column, strict=True)), lift(0.0)) for column in zip(*b, strict=True)]
        for row in a
    ]


def combined(a, b, first, second):
    return [[x * first + y * second for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]


def inverse(matrix):
    """Gauss and Jordan, with the largest pivot."""
    size = len(matrix)
    rows = [[*row, *(lift(float(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        best = max(range(i, size), key=lambda r: abs(rows[r][i].value))
        rows[i], rows[best] = rows[best], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for r in range(size):
            if r != i:
                factor = rows[r][i]
                rows[r] = [x - factor * y for x, y in zip(rows[r], rows[i], strict=True)]
    return [row[size:] for row in rows]


def inverse_root(matrix):
    """Denman and Beavers: no eigenvectors."""
    root, other = matrix, [[lift(float(i == j)) for j in range(len(matrix))] for i in range(len(matrix))]
    for _ in range(30):
        root, other = combined(root, inverse(other), 0.5, 0.5), combined(other, inverse(root), 0.5, 0.5)
    return other


def centred(rows):
    out = []
    for row in rows:
        mean = sum(row, lift(0.0)) / len(row)
        out.append([x - mean for x in row])
    return out


def covariance(rows):
    return [[x / (len(rows[0]) - 1) for x in row] for row in product(rows, [list(c) for c in zip(*rows, strict=True)])]


def loop_channel_whiten(rows, groups, order, eps=0.0):
    rows, size = centred(rows), len(rows[0]) // groups
    whitened = [[lift(0.0)] * len(row) for row in rows]
    for g in range(groups):
        chosen = order[g * size : (g + 1) * size]
        part = [[row[c] for c in chosen] for row in rows]
        sigma = covariance(part)
        mixed = [[x * (1 - eps) + eps * (i == j) for j, x in enumerate(row)] for i, row in enumerate(sigma)]
        for row, new in zip(whitened, product(inverse_root(mixed), part), strict=True):
            for c, x in zip(chosen, new, strict=True):
                row[c] = x
    return whitened


def loop_iterative(rows, iterations):
    rows = centred(rows)
    sigma = covariance(rows)
    trace = sum((sigma[i][i] for i in range(len(sigma))), lift(0.0))
    scaled = [[x / trace for x in row] for row in sigma]
    root = [[lift(float(i == j)) for j in range(len(sigma))] for i in range(len(sigma))]
    for _ in range(iterations):
        root = combined(root, product(product(product(root, root), root), scaled), 1.5, -0.5)
    return [[x / trace.root() for x in row] for row in product(root, rows)]


def distance(a, b):
    """Two minus twice the cosine."""
    long_a, long_b = (sum((x * x for x in row), lift(0.0)).root() for row in (a, b))
    return lift(2.0) - sum((x * y for x, y in zip(a, b, strict=True)), lift(0.0)) / (long_a * long_b) * 2.0


def loop_intl(views, weight, iterations):
    whitened = [loop_iterative(view, iterations) for view in views]
    traces = []
    for rows in whitened:
        total = lift(0.0)
        for row in rows:
            mean = sum(row, lift(0.0)) / len(row)
            excess = sum(((x - mean) * (x - mean) for x in row), lift(0.0)) / (len(row) - 1) - 1.0
            total = total + excess * excess
        traces.append(total)
    total = lift(0.0)
    for rows, trace in zip(whitened[1:], traces[1:], strict=True):
        total = total + sum((distance(a, b) for a, b in zip(whitened[0], rows, strict=True)), lift(0.0)) / len(rows)
        total = total + (trace + traces[0]) * weight
    return total / (len(views) - 1)


def loop_mse(views, sets, orders, groups, eps, normalize):
    """``sets`` of images, and for each view and set the order of its channels."""
    total, terms = lift(0.0), 0
    for s, chosen in enumerate(sets):
        parts = [
            loop_channel_whiten([view[i] for i in chosen], groups, orders[v][s], eps) for v, view in enumerate(views)
        ]
        for first, second in itertools.combinations(parts, 2):
            for a, b in zip(first, second, strict=True):
                plain = sum(((x - y) * (x - y) for x, y in zip(a, b, strict=True)), lift(0.0)) / len(a)
                total, terms = total + (distance(a, b) if normalize else plain), terms + 1
    return total / terms


def checked(function, loop, x, tolerance=1e-8):
    """Compare value and every derivative of a scalar."""
    leaf = x.clone().requires_grad_()
    loss = function(leaf)
    loss.backward()
    for place in itertools.product(*map(range, x.shape)):
        direction = torch.zeros_like(x)
        direction[place] = 1
        expected = loop(duals(x, direction))
        assert leaf.grad[place].item() == pytest.approx(expected.slope, rel=tolerance, abs=tolerance)
    assert loss.item() == pytest.approx(expected.value, rel=1e-9)


@pytest.mark.parametrize(
    ("rows", "dim", "groups", "eps"), [(1, 3, 1, 0.0), (3, 8, 2, 0.0), (3, 12, 3, 0.2), (4, 5, 1, 0.0)]
)
def test_channel_whiten_is_the_loop_in_value_and_slope(rows, dim, groups, eps):
    x, direction, weight = random(rows, dim) + 2, random(rows, dim, seed=1), random(rows, dim, seed=2)
    order = torch.randperm(dim, generator=seeded())
    leaf = x.clone().requires_grad_()
    z = channel_whiten(leaf, groups, order, eps)
    expected = loop_channel_whiten(duals(x, direction), groups, order.tolist(), eps)
    values = torch.tensor([[e.value for e in row] for row in expected], dtype=torch.float64)
    slopes = torch.tensor([[e.slope for e in row] for row in expected], dtype=torch.float64)
    torch.testing.assert_close(z, values, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad((z * weight).sum(), leaf)
    assert (gradient * direction).sum().item() == pytest.approx((slopes * weight).sum().item(), rel=1e-8)


@pytest.mark.parametrize(("rows", "dim", "groups"), [(4, 12, 2), (6, 64, 4)])
def test_each_group_of_channels_is_white_over_the_samples(rows, dim, groups):
    x, order = 3 * random(rows, dim) + 5, torch.randperm(dim, generator=seeded())
    z = channel_whiten(x, groups, order)
    size = dim // groups
    for g in range(groups):
        part = z[:, order[g * size : (g + 1) * size]]
        torch.testing.assert_close(part @ part.T / (size - 1), torch.eye(rows, dtype=torch.float64))
    other = z[:, : dim // groups]  # channels that did not come together
    assert (other @ other.T / (size - 1) - torch.eye(rows)).abs().max() > 1e-3


def test_the_gradient_is_finite_where_eigenvalues_are_equal():
    """Rows whose covariance is the identity: autograd through eigenvectors would be infinite."""
    x = channel_whiten(random(3, 8), 1).requires_grad_()
    weight = random(3, 8, seed=2)
    (gradient,) = torch.autograd.grad((channel_whiten(x, 1) * weight).sum(), x)
    assert bool(gradient.isfinite().all())
    step, along = 1e-6, random(3, 8, seed=3)
    with torch.no_grad():
        ends = [(channel_whiten(x + sign * step * along, 1) * weight).sum() for sign in (1, -1)]
    assert (gradient * along).sum().item() == pytest.approx(float(ends[0] - ends[1]) / 2 / step, rel=1e-6)


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda a: channel_whiten(a, 2, None, 0.1), (random(3, 10).requires_grad_(),))
    assert torch.autograd.gradcheck(lambda a: iterative_whiten(a, 3), (random(4, 6).requires_grad_(),))
    assert torch.autograd.gradcheck(lambda a: intl_loss(a, 0.05, 3), (random(3, 4, 6).requires_grad_(),))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("views", "count", "dim", "size", "groups", "eps"),
    [(2, 4, 6, 2, 2, 0.0), (3, 3, 4, 3, 1, 0.1), (2, 2, 8, 1, 4, 0.0)],
)
def test_cw_rgp_is_the_loop(views, count, dim, size, groups, eps, normalize):
    x, generator = random(views, count, dim, seed=3), seeded()
    images = torch.randperm(count, generator=generator).view(-1, size)
    orders = torch.rand(views, len(images), dim, generator=generator).argsort(-1)
    checked(
        lambda a: channel_whitening_mse(a, size, groups, eps, normalize, seeded()),
        lambda a: loop_mse(a, images.tolist(), orders.tolist(), groups, eps, normalize),
        x,
    )


def test_views_and_sub_batches_have_groups_of_their_own():
    seen = []
    from selfsup.functional import channel_whitening

    original = channel_whitening.channel_whiten
    try:
        channel_whitening.channel_whiten = lambda x, g, order, eps: (seen.append(order), original(x, g, order, eps))[1]
        channel_whitening_mse(random(2, 8, 12), 4, 2, generator=seeded())
    finally:
        channel_whitening.channel_whiten = original
    orders = seen[0].flatten(0, 1)
    assert seen[0].shape == (2, 2, 12)
    assert torch.equal(orders.sort(-1).values, torch.arange(12).expand(4, -1))
    assert len({tuple(order) for order in orders.tolist()}) == 4


@pytest.mark.parametrize(("rows", "dim", "iterations"), [(2, 3, 1), (3, 6, 4), (5, 4, 2), (1, 4, 4)])
def test_iterative_whiten_is_the_loop_in_value_and_slope(rows, dim, iterations):
    x, direction, weight = random(rows, dim) + 1, random(rows, dim, seed=1), random(rows, dim, seed=2)
    leaf = x.clone().requires_grad_()
    z = iterative_whiten(leaf, iterations)
    expected = loop_iterative(duals(x, direction), iterations)
    values = torch.tensor([[e.value for e in row] for row in expected], dtype=torch.float64)
    slopes = torch.tensor([[e.slope for e in row] for row in expected], dtype=torch.float64)
    torch.testing.assert_close(z, values, rtol=1e-11, atol=1e-12)
    (gradient,) = torch.autograd.grad((z * weight).sum(), leaf)
    assert (gradient * direction).sum().item() == pytest.approx((slopes * weight).sum().item(), rel=1e-10)


def test_the_spectrum_lies_between_0_and_1_and_comes_to_1():
    x, scale = random(6, 40), torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    for rows, iterations in ((x, 1), (x, 4), (x, 9), (x * scale[:, None], 4)):
        z = iterative_whiten(rows, iterations)
        spectrum = torch.linalg.eigvalsh(z @ z.T / 39)
        assert spectrum.min() > 0
        assert spectrum.max() <= 1 + 1e-12
        if iterations == 9:
            torch.testing.assert_close(spectrum, torch.ones(6, dtype=torch.float64), rtol=1e-4, atol=0)
    assert spectrum.min() < 0.7  # which is the method, and what the trace loss is for


@pytest.mark.parametrize(("views", "rows", "dim", "weight"), [(2, 3, 5, 0.05), (3, 2, 4, 0.0), (2, 4, 3, 1.0)])
def test_intl_is_the_loop_in_value_and_gradient(views, rows, dim, weight):
    checked(lambda a: intl_loss(a, weight, 4), lambda a: loop_intl(a, weight, 4), random(views, rows, dim, seed=3) + 1)


def test_equal_white_views_cost_nothing():
    x = channel_whiten(random(4, 30), 1)
    assert intl_loss(torch.stack([x, x]), 0.5, 9).item() == pytest.approx(0, abs=1e-9)


def test_views_that_are_the_same_for_every_image_cost_the_trace():
    """A collapse to one direction: the spectrum is (1, 0, …, 0), and each of N variances is 1/N."""
    x = random(1, 20).expand(5, -1)
    loss = intl_loss(torch.stack([x, x]), 0.1, 4)
    assert loss.item() == pytest.approx(0.1 * 2 * 5 * (1 - 1 / 5) ** 2, rel=1e-6)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half):
    x = random(2, 4, 16).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = intl_loss(x, 0.1), channel_whitening_mse(x, 4, 2, generator=seeded())
    exact = intl_loss(x.double(), 0.1), channel_whitening_mse(x.double(), 4, 2, generator=seeded())
    for loss, expected in zip(losses, exact, strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3)


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="4 groups of 16 channels must each have more channels than the 4 rows"):
        channel_whiten(random(4, 16), 4)
    with pytest.raises(ValueError, match="3 groups of 16 channels"):
        channel_whiten(random(2, 16), 3)
    with pytest.raises(ValueError, match="the values of x give a singular covariance"):
        channel_whiten(random(1, 16).expand(3, -1), 1)
    with pytest.raises(ValueError, match="8 images do not divide into sub-batches of subbatch_size=3"):
        channel_whitening_mse(random(2, 8, 16), 3, 2)
    with pytest.raises(ValueError, match="at least two views"):
        channel_whitening_mse(random(1, 8, 16), 4, 2)
    with pytest.raises(ValueError, match="at least two views"):
        intl_loss(random(1, 8, 16), 0.1)
    with pytest.raises(ValueError, match="do not vary over the channels"):
        iterative_whiten(torch.ones(3, 4, dtype=torch.float64))
    assert math.isfinite(intl_loss(random(2, 8, 16), 0.1).item())
    assert isinstance(lift(1.0), Dual)


@pytest.mark.parametrize(
    "order", [torch.arange(8.0), torch.arange(7), torch.arange(8) + 1, torch.arange(8).expand(3, -1)]
)
def test_an_order_that_cannot_be_is_named(order):
    with pytest.raises(ValueError, match="channel_whiten: order"):
        channel_whiten(random(2, 3, 8), 2, order)


@pytest.mark.parametrize("seed", range(12))
def test_a_covariance_that_is_singular_but_for_rounding_is_not_whitened(seed):
    """Two rows alike: the least eigenvalue is rounding, of either sign, and its root would be noise."""
    x = random(3, 16, seed=seed)[[0, 1, 1, 2]]
    with pytest.raises(ValueError, match="give a singular covariance"):
        channel_whiten(x, 1)
