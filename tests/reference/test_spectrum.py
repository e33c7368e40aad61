"""MMCR, coding rate, EMP-SSL, FroSSL and TiCo against loops over floats, closed forms and invariances."""

import math

import pytest
import torch
from slopes import dot, eigenvalues, mean_row, slopes, unit

from selfsup.functional import centroid_distance, coding_rate, emp_ssl_loss, frossl_loss, mmcr_loss, tico_loss


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gram(rows):
    return [[dot(a, b) for b in rows] for a in rows]


def nuclear(rows):
    rows = min(rows, [list(column) for column in zip(*rows, strict=True)], key=len)  # no zeros that rounding moves
    return math.fsum(math.sqrt(max(value, 0.0)) for value in eigenvalues(gram(rows)))


def units(views):
    return [[unit(row) for row in view] for view in views.tolist()]


def loop_mmcr(views, weight=0.0, slow=None):
    own = units(views)
    means = [mean_row([view[n] for view in own]) for n in range(len(own[0]))]
    if slow is not None:
        others = units(slow)
        means = [mean_row([m, mean_row([view[n] for view in others])]) for n, m in enumerate(means)]
    local = math.fsum(nuclear([view[n] for view in own]) for n in range(len(own[0]))) / len(own[0])
    return weight * local - nuclear(means)


def loop_rate(views, eps):
    total = 0.0
    for rows in units(views):
        factor = len(rows[0]) / (len(rows) * eps)
        total += math.fsum(math.log(1 + factor * value) for value in eigenvalues(gram(rows))) / 2
    return total / len(views)


def loop_emp(views, weight, eps):
    own = units(views)
    total = 0.0
    for n in range(len(own[0])):
        middle = unit(mean_row([view[n] for view in own]))
        total += math.fsum(dot(view[n], middle) for view in own) / (len(own) * len(own[0]))
    return -loop_rate(views, eps) - weight * total


def loop_frossl(views, weight):
    columns = []
    for view in views.tolist():
        dims = [list(column) for column in zip(*view, strict=True)]
        columns.append([unit([x - math.fsum(d) / len(d) for x in d]) for d in dims])
    total = 0.0
    for dims in columns:
        values = eigenvalues(gram(dims))
        total += math.log(math.fsum(v * v for v in values) / math.fsum(values) ** 2)
    pairs = [(a, b) for a in columns for b in columns if a is not b]
    apart = math.fsum(
        (x - y) ** 2 for a, b in pairs for c, d in zip(a, b, strict=True) for x, y in zip(c, d, strict=True)
    )
    return total + weight * len(columns) / 2 * apart / len(pairs) / views.shape[1]


def loop_tico(query, key, remembered, momentum, weight):
    q, k = units(query[None])[0], units(key[None])[0]
    size = range(len(q[0]))
    matrix = [
        [momentum * remembered[i, j].item() + (1 - momentum) * math.fsum(r[i] * r[j] for r in q) / len(q) for j in size]
        for i in size
    ]
    terms = [
        1 - dot(a, b) + weight * math.fsum(a[i] * matrix[i][j] * a[j] for i in size for j in size)
        for a, b in zip(q, k, strict=True)
    ]
    return math.fsum(terms) / len(q), torch.tensor(matrix, dtype=torch.float64)


def agrees(function, loop, *tensors):
    """The value is the loop's and the gradient its slope, in float64; the value in float32 too."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    loss = function(*leaves)
    loss.backward()
    assert loss.item() == pytest.approx(loop(*tensors), rel=1e-10, abs=1e-12)
    for leaf, slope in zip(leaves, slopes(loop, *tensors), strict=True):
        torch.testing.assert_close(leaf.grad, slope, rtol=1e-6, atol=1e-8)
    assert function(*(t.float() for t in tensors)).item() == pytest.approx(loop(*tensors), rel=1e-4, abs=1e-4)


SHAPES = [(2, 5, 3), (3, 3, 4), (4, 2, 2)]  # more images than dimensions, fewer, as many


@pytest.mark.parametrize("shape", SHAPES)
def test_mmcr_is_the_loop_in_value_and_gradient(shape):
    views = random(*shape)
    agrees(mmcr_loss, loop_mmcr, views)
    agrees(lambda z: mmcr_loss(z, 0.3), lambda z: loop_mmcr(z, 0.3), views)
    slow = random(*shape, seed=1)
    agrees(lambda z: mmcr_loss(z, momentum_views=slow), lambda z: loop_mmcr(z, 0.0, slow), views)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.2, 1.5])
def test_the_coding_rate_and_emp_ssl_are_the_loops_in_value_and_gradient(shape, eps):
    views = random(*shape)
    agrees(lambda z: coding_rate(z, eps), lambda z: loop_rate(z, eps), views)
    agrees(lambda z: emp_ssl_loss(z, 2.0, eps), lambda z: loop_emp(z, 2.0, eps), views)


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 3, 4), (4, 6, 2)])
@pytest.mark.parametrize("weight", [0.0, 1.4])
def test_frossl_is_the_loop_in_value_and_gradient(shape, weight):
    agrees(lambda z: frossl_loss(z, weight), lambda z: loop_frossl(z, weight), 2 * random(*shape) + 1)


@pytest.mark.parametrize(("count", "dim"), [(1, 2), (5, 3), (3, 4)])
def test_tico_is_the_loop_in_value_and_gradient(count, dim):
    query, key, old = random(count, dim), random(count, dim, seed=1), random(dim, dim, seed=2)
    agrees(
        lambda q, k: tico_loss(q, k, old.to(q.dtype), 0.7, 8.0)[0],
        lambda q, k: loop_tico(q, k, old, 0.7, 8.0)[0],
        query,
        key,
    )
    leaf = query.clone().requires_grad_()
    _, covariance = tico_loss(leaf, key, old, 0.7, 8.0)
    assert not covariance.requires_grad
    torch.testing.assert_close(covariance, loop_tico(query, key, old, 0.7, 8.0)[1])


def test_gradcheck():
    views = random(3, 5, 3).requires_grad_()
    for function in (mmcr_loss, coding_rate, frossl_loss, lambda z: mmcr_loss(z, 0.5)):
        assert torch.autograd.gradcheck(function, views)


# closed forms


def orthonormal(count, dim):
    """Rows (or columns, where there are more rows) that are orthonormal."""
    basis = torch.linalg.qr(random(max(count, dim), min(count, dim)))[0]
    return basis if count >= dim else basis.T


def test_mmcr_of_orthonormal_means_and_of_a_tight_frame_is_least():
    few = orthonormal(6, 16)
    assert mmcr_loss(torch.stack([few] * 3)).item() == pytest.approx(-6, rel=1e-12)
    circle = torch.arange(64, dtype=torch.float64) * 2 * math.pi / 64
    waves = [f(k * circle) for k in range(1, 9) for f in (torch.cos, torch.sin)]
    frame = torch.stack(waves, 1) / math.sqrt(8)  # 64 unit rows in 16 dimensions, covariance 64/16 · I
    assert mmcr_loss(torch.stack([frame, frame])).item() == pytest.approx(-math.sqrt(64 * 16), rel=1e-12)
    for count, dim in ((5, 9), (20, 4)):
        assert mmcr_loss(random(2, count, dim)).item() > -math.sqrt(min(count, dim) * count)


def test_mmcr_of_opposite_views_is_zero_and_of_one_point_is_minus_the_root_of_the_images():
    z = random(7, 4)
    assert mmcr_loss(torch.stack([z, -z])).item() == pytest.approx(0, abs=1e-12)
    assert mmcr_loss(torch.ones(2, 9, 4, dtype=torch.float64)).item() == pytest.approx(-3, rel=1e-12)


def test_coding_rate_of_orthonormal_rows_and_of_one_point():
    basis = orthonormal(16, 16)[None]
    assert coding_rate(basis).item() == pytest.approx(8 * math.log(1 + 1 / 0.2), rel=1e-12)
    assert coding_rate(basis).item() == pytest.approx(14.334, abs=5e-4)
    point = torch.ones(1, 16, 16, dtype=torch.float64)
    assert coding_rate(point).item() == pytest.approx(math.log(1 + 16 / 0.2) / 2, rel=1e-12)
    assert coding_rate(point).item() == pytest.approx(2.197, abs=5e-4)
    # the sign: to collapse costs more, with equal views in both
    assert emp_ssl_loss(torch.cat([point, point])).item() > emp_ssl_loss(torch.cat([basis, basis])).item()
    assert emp_ssl_loss(torch.cat([basis, basis])).item() == pytest.approx(-14.334 - 200, abs=5e-4)


def test_frossl_of_uncorrelated_and_of_repeated_dimensions():
    centred = torch.linalg.qr(torch.cat([torch.ones(64, 1, dtype=torch.float64), random(64, 32)], 1))[0][:, 1:]
    even = torch.stack([3 * centred + 1, centred])
    assert frossl_loss(even).item() == pytest.approx(-2 * math.log(32), rel=1e-12)
    assert -math.log(32) == pytest.approx(-3.4657, abs=5e-5)
    repeated = random(20, 1).expand(20, 8)
    assert frossl_loss(torch.stack([repeated, 2 * repeated])).item() == pytest.approx(0, abs=1e-12)


def test_frossl_of_two_views_is_the_authors_up_to_a_constant():
    """Their terms: columns of length √D, norms of ZᵀZ / N, the mean over all entries of the squared difference."""
    views = random(2, 9, 4) + 2
    columns = [2 * (z - z.mean(0)) / (z - z.mean(0)).norm(dim=0) for z in views]  # √D = 2
    theirs = sum(2 * (z.T @ z / 9).norm().log() for z in columns) + 1.4 * (columns[0] - columns[1]).square().mean()
    constant = 2 * 2 * math.log(4 * 4 / 9)  # each norm is D² / N of the one whose trace is 1
    assert frossl_loss(views, 1.4).item() == pytest.approx(theirs.item() - constant, rel=1e-10)


def test_tico_without_memory_and_with_a_unit_matrix():
    query, key = random(6, 3), random(6, 3, seed=1)
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    alone = 1 - torch.nn.functional.cosine_similarity(query, key).mean().item()
    assert tico_loss(query, key, nothing, 0.9, 0.0)[0].item() == pytest.approx(alone, rel=1e-12)
    # a fraction of the identity is the same length in all directions
    first, _ = tico_loss(query, key, nothing, 0.5, 8.0)
    second, _ = tico_loss(query, key, torch.eye(3, dtype=torch.float64) / 3, 0.5, 8.0)
    assert (second - first).item() == pytest.approx(8 * 0.5 / 3, rel=1e-10)
    # zᵀCz is at most the largest eigenvalue
    _, covariance = tico_loss(query, key, nothing, 0.0, 8.0)
    length = (tico_loss(query, key, nothing, 0.0, 1.0)[0] - tico_loss(query, key, nothing, 0.0, 0.0)[0]).item()
    assert length <= torch.linalg.eigvalsh(covariance)[-1].item() + 1e-12
    assert covariance.trace().item() == pytest.approx(1, rel=1e-12)


# properties


@pytest.mark.parametrize("function", [mmcr_loss, coding_rate, emp_ssl_loss, frossl_loss])
def test_order_of_images_and_views_rotation_and_scale(function):
    views = random(3, 8, 4)
    value = function(views)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(function(views[:, order]), value)
    torch.testing.assert_close(function(views[[2, 0, 1]]), value)
    torch.testing.assert_close(function(3 * views), value)
    if function is not frossl_loss:  # which is of the axes
        turn = torch.linalg.qr(random(4, 4, seed=3))[0]
        torch.testing.assert_close(function(views @ turn), value)
    if function is not coding_rate:  # which does not compare views
        assert abs(function(torch.stack([views[0], views[1].roll(1, 0), views[2]])) - value) > 1e-3


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [mmcr_loss, coding_rate, emp_ssl_loss, frossl_loss, centroid_distance])
def test_half_inputs_are_computed_in_float32_under_autocast(function, half):
    views = random(2, 16, 8, dtype=half).requires_grad_()
    with torch.autocast("cpu", dtype=half):
        loss = function(views)
    assert loss.dtype == torch.float32
    # with a gradient, singular values come by another routine, which rounds otherwise
    assert loss.item() == pytest.approx(function(views.detach().float()).item(), rel=1e-6)
    loss.backward()
    assert views.grad.dtype == half


def test_half_tico_is_computed_in_float32_under_autocast():
    query, key, old = random(6, 4, dtype=torch.bfloat16), random(6, 4, seed=1, dtype=torch.bfloat16), torch.eye(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, covariance = tico_loss(query, key, old)
    assert (loss.dtype, covariance.dtype) == (torch.float32, torch.float32)
    assert loss.item() == tico_loss(query.float(), key.float(), old)[0].item()


@pytest.mark.parametrize("shape", [(1, 4, 3), (2, 1, 3), (4, 3)])
def test_frossl_refuses_one_view_and_one_image(shape):
    with pytest.raises(ValueError, match="views"):
        frossl_loss(torch.ones(shape))


def test_a_view_that_does_not_vary_is_refused():
    with pytest.raises(ValueError, match="do not vary"):
        frossl_loss(torch.ones(2, 4, 3))
