"""Whitening and W-MSE against a Cholesky factorisation in plain Python with hand-written derivatives."""

import itertools
import math

import pytest
import torch

from selfsup.functional import whiten, whitening_mse
from selfsup.functional.arguments import trusted_values


class Dual:
    """A number and its derivative along one direction: forward-mode arithmetic, rule by rule."""

    def __init__(self, value, slope=0.0):
        self.value, self.slope = value, slope

    def __add__(self, other):
        other = lift(other)
        return Dual(self.value + other.value, self.slope + other.slope)

    def __sub__(self, other):
        other = lift(other)
        return Dual(self.value - other.value, self.slope - other.slope)

    def __mul__(self, other):
        other = lift(other)
        return Dual(self.value * other.value, self.slope * other.value + self.value * other.slope)

    def __truediv__(self, other):
        other = lift(other)
        value = self.value / other.value
        return Dual(value, (self.slope - value * other.slope) / other.value)

    def root(self):
        value = math.sqrt(self.value)
        return Dual(value, self.slope / (2 * value))

    __radd__ = __add__


def lift(x):
    return x if isinstance(x, Dual) else Dual(x)


def loop_whiten(rows, eps=0.0):
    """Centre, covariance with n - 1, Cholesky–Banachiewicz, forward substitution, on lists of Duals."""
    count, dim = len(rows), len(rows[0])
    mean = [sum((row[d] for row in rows), lift(0.0)) / count for d in range(dim)]
    centred = [[row[d] - mean[d] for d in range(dim)] for row in rows]
    factor = [[lift(0.0)] * dim for _ in range(dim)]
    for i in range(dim):
        for j in range(i + 1):
            entry = sum((row[i] * row[j] for row in centred), lift(0.0)) / (count - 1) * (1 - eps)
            entry = entry + (eps if i == j else 0.0)
            for k in range(j):
                entry = entry - factor[i][k] * factor[j][k]
            factor[i][j] = entry.root() if i == j else entry / factor[j][j]
    whitened = []
    for row in centred:
        solved = []
        for i in range(dim):
            left = row[i]
            for k in range(i):
                left = left - factor[i][k] * solved[k]
            solved.append(left / factor[i][i])
        whitened.append(solved)
    return whitened


def loop_whitening_mse(views, orders, size, eps, normalize):
    """One permutation, one sub-batch, one pair of views, one image at a time."""
    total, terms = lift(0.0), 0
    for order in orders:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            parts = [loop_whiten([view[i] for i in chosen], eps) for view in views]
            for first, second in itertools.combinations(parts, 2):
                for a, b in zip(first, second, strict=True):
                    if normalize:
                        long_a = sum((x * x for x in a), lift(0.0)).root()
                        long_b = sum((x * x for x in b), lift(0.0)).root()
                        cosine = sum((x * y for x, y in zip(a, b, strict=True)), lift(0.0)) / (long_a * long_b)
                        total = total + lift(2.0) - cosine * 2.0
                    else:
                        total = total + sum(((x - y) * (x - y) for x, y in zip(a, b, strict=True)), lift(0.0)) / len(a)
                    terms += 1
    return total / terms


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def duals(x, direction):
    if x.ndim == 0:
        return Dual(x.item(), direction.item())
    return [duals(a, b) for a, b in zip(x, direction, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
@pytest.mark.parametrize(("count", "dim", "eps"), [(2, 1, 0.0), (9, 3, 0.0), (12, 5, 0.1), (6, 5, 0.0)])
def test_whiten_is_the_loop_in_value_and_slope(count, dim, eps, dtype, tolerance):
    x, direction, weight = 2 * random(count, dim) + 3, random(count, dim, seed=1), random(count, dim, seed=2)
    leaf = x.to(dtype).requires_grad_()
    v = whiten(leaf, eps)
    expected = loop_whiten(duals(x, direction), eps)
    values = torch.tensor([[entry.value for entry in row] for row in expected], dtype=torch.float64)
    slopes = torch.tensor([[entry.slope for entry in row] for row in expected], dtype=torch.float64)
    torch.testing.assert_close(v.double(), values, rtol=tolerance, atol=tolerance)
    (gradient,) = torch.autograd.grad((v * weight.to(dtype)).sum(), leaf)
    along = (gradient.double() * direction).sum().item()
    assert along == pytest.approx((slopes * weight).sum().item(), rel=20 * tolerance, abs=20 * tolerance)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("count", "dim", "views", "size", "iterations", "eps"),
    [(4, 2, 2, 4, 1, 0.0), (8, 3, 2, 4, 2, 0.0), (6, 1, 3, 3, 1, 0.2), (12, 2, 4, 6, 3, 0.05)],
)
def test_whitening_mse_is_the_loop_in_value_and_gradient(count, dim, views, size, iterations, eps, normalize):
    x = random(views, count, dim, seed=3) * random(1, 1, dim, seed=4).exp()
    generator = seeded()
    orders = [torch.randperm(count, generator=generator).tolist() for _ in range(iterations)]
    leaf = x.clone().requires_grad_()
    loss = whitening_mse(leaf, size, iterations, eps, normalize, seeded())
    loss.backward()
    for place in itertools.product(range(views), range(count), range(dim)):
        direction = torch.zeros_like(x)
        direction[place] = 1
        expected = loop_whitening_mse(duals(x, direction), orders, size, eps, normalize)
        assert leaf.grad[place].item() == pytest.approx(expected.slope, rel=1e-8, abs=1e-9)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected.value, rel=1e-10)
    single = whitening_mse(x.float(), size, iterations, eps, normalize, seeded())
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected.value, rel=1e-3)


def test_gradcheck():
    x = random(7, 3).requires_grad_()
    assert torch.autograd.gradcheck(whiten, (x,))
    assert torch.autograd.gradcheck(lambda a: whiten(a, 0.1), (x,))
    views = random(3, 8, 2).requires_grad_()
    for normalize in (True, False):
        assert torch.autograd.gradcheck(lambda z, n=normalize: whitening_mse(z, 4, 2, 0.0, n, seeded()), (views,))


# closed forms and invariants


@pytest.mark.parametrize(("count", "dim"), [(128, 64), (65, 64), (3, 2), (300, 7)])
def test_whitened_rows_have_mean_0_covariance_1_and_the_known_length(count, dim):
    v = whiten(3 * random(count, dim) + 10)
    # 65 rows in 64 dimensions are badly conditioned: that is why twice the dimension is advised
    close = 1e-11 if count >= 2 * dim else 1e-9
    assert v.mean(0).abs().max() < close
    assert (torch.cov(v.T) - torch.eye(dim)).abs().max() < close
    assert v.square().sum(1).mean().item() == pytest.approx(dim * (count - 1) / count, rel=close)  # 63.5 at 64 of 128


def test_a_triangular_map_is_undone_and_a_rotation_only_rotates():
    x = random(40, 6)
    v = whiten(x)
    triangular = random(6, 6, seed=1).tril(-1) + torch.diag(random(6, seed=2).exp())
    torch.testing.assert_close(whiten(x @ triangular.T + random(6, seed=3)), v, rtol=1e-9, atol=1e-10)
    rotated = whiten(x @ torch.linalg.qr(random(6, 6, seed=4))[0])
    assert (rotated - v).abs().max() > 0.1
    torch.testing.assert_close(rotated @ rotated.T, v @ v.T, rtol=1e-9, atol=1e-9)


def test_identical_views_have_no_loss_and_independent_ones_about_two():
    one = random(512, 16)
    assert whitening_mse(torch.stack([one, one, one]), 64, generator=seeded()).item() == 0
    # any triangular map of a view is the same view
    mapped = one @ torch.diag(random(16, seed=1).exp()) + 5
    assert whitening_mse(torch.stack([one, mapped]), 64, generator=seeded()).item() == pytest.approx(0, abs=1e-12)
    # the cosine of independent rows has mean 0 and variance 1/D: 512 of them stay within 0.2 of 2 (9 deviations)
    assert whitening_mse(random(2, 512, 16, seed=2), 64, generator=seeded()).item() == pytest.approx(2, abs=0.2)


def test_every_view_receives_a_gradient():
    """A view that is detached leaves the value as it is, but not the gradient of the other."""
    views = random(3, 16, 4).requires_grad_()
    whitening_mse(views, 8, generator=seeded()).backward()
    assert (views.grad.abs().sum(dim=(1, 2)) > 0.01).all()


def test_the_order_of_views_does_not_matter_and_pairs_do():
    views = random(3, 16, 4) + random(1, 16, 4, seed=1)
    loss = whitening_mse(views, 8, 2, generator=seeded())
    torch.testing.assert_close(whitening_mse(views.flip(0), 8, 2, generator=seeded()), loss)
    broken = torch.stack([views[0], views[1].roll(1, 0), views[2]])
    assert whitening_mse(broken, 8, 2, generator=seeded()) > loss + 0.1


def test_one_permutation_serves_all_views_and_each_view_is_whitened_apart():
    """Views that are maps of each other have no loss in any division only if they are divided alike, and apart."""
    one = random(24, 3)
    views = torch.stack([one, 4 * one + 2])
    assert whitening_mse(views, 6, 3, generator=seeded()).item() == pytest.approx(0, abs=1e-12)


def test_the_permutation_comes_from_the_generator():
    views = random(2, 16, 3)
    assert whitening_mse(views, 4, generator=seeded(1)) == whitening_mse(views, 4, generator=seeded(1))
    assert whitening_mse(views, 4, generator=seeded(1)) != whitening_mse(views, 4, generator=seeded(2))
    # whitened as a whole, their order does not matter
    torch.testing.assert_close(
        whitening_mse(views, 16, generator=seeded(1)), whitening_mse(views, 16, generator=seeded(2))
    )
    state = torch.get_rng_state()
    whitening_mse(views, 4, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_iterations_average_independent_divisions():
    views, generator = random(2, 16, 3), seeded()
    each = [whitening_mse(views, 4, 1, generator=generator) for _ in range(3)]
    torch.testing.assert_close(whitening_mse(views, 4, 3, generator=seeded()), torch.stack(each).mean())


# what cannot be factored


def flat(seed=0):
    """Two views of 16 images whose third dimension repeats the first exactly."""
    views = random(2, 16, 3, seed=seed).round(decimals=1)
    return torch.cat([views, torch.zeros(2, 16, 1, dtype=torch.float64)], dim=2)


def test_a_singular_covariance_is_not_a_number_and_is_counted():
    count = torch.zeros((), dtype=torch.long)
    with trusted_values():  # as in a training step, which does not wait to raise
        assert whiten(flat()[0]).isnan().all()
        assert whitening_mse(flat(), 8, 3, generator=seeded(), failures=count).isnan()
    for refused in (lambda: whiten(flat()[0]), lambda: whitening_mse(flat(), 8, 3)):
        with pytest.raises(ValueError, match="singular"):
            refused()
    assert int(count) == 2 * 2 * 3  # views, sub-batches, iterations
    assert whiten(flat()[0], eps=1e-4).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_covariance_that_is_singular_but_for_rounding_is_not_whitened(dtype):
    """The factorisation alone would let about half of these through, and blow rounding error up to variance 1."""
    for seed in range(20):
        dependent = random(32, 3, seed=seed) @ random(3, 8, seed=100 + seed)  # rank 3 in 8 dimensions
        constant = torch.cat([random(32, 3, seed=seed), random(1, 1, seed=seed).expand(32, 1)], dim=1)
        with trusted_values():
            assert whiten(dependent.to(dtype)).isnan().all()
            assert whiten(constant.to(dtype)).isnan().all()
    # small, large or far from the origin is not singular
    for scale, shift in ((1e-6, 0.0), (1e6, 0.0), (1.0, 1e3)):
        assert whiten((random(32, 8) * scale + shift).to(dtype)).isfinite().all()


def test_jitter_touches_only_what_failed():
    count = torch.zeros((), dtype=torch.long)
    whole = random(2, 16, 4)
    plain = whitening_mse(whole, 8, generator=seeded())
    assert torch.equal(whitening_mse(whole, 8, generator=seeded(), jitter=1e-4, failures=count), plain)
    assert int(count) == 0
    views = torch.stack([whole[0], flat()[0]]).requires_grad_()  # one view of two is flat
    loss = whitening_mse(views, 8, generator=seeded(), jitter=1e-4, failures=count)
    assert int(count) == 2
    loss.backward()
    assert loss.isfinite()
    assert views.grad.isfinite().all()
    # by hand: the mean variance is that of the set
    order = torch.randperm(16, generator=seeded())[:8]
    expected = []
    for rows, jitter in ((whole[0][order], 0.0), (flat()[0][order], 1e-4)):
        covariance = torch.cov(rows.T)
        covariance += jitter * covariance.diagonal().mean() * torch.eye(4)
        expected.append((rows - rows.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T)
    cosine = torch.nn.functional.cosine_similarity(*expected, dim=1)
    pair = torch.stack([whole[0][order], flat()[0][order]])
    alone = whitening_mse(pair, 8, generator=seeded(), jitter=1e-4)
    assert alone.item() == pytest.approx((2 - 2 * cosine).mean().item(), rel=1e-9)


@pytest.mark.parametrize(("count", "dim"), [(4, 4), (3, 4), (1, 1)])
def test_too_few_rows_are_refused(count, dim):
    with pytest.raises(ValueError, match="more rows than dimensions"):
        whiten(random(count, dim))
    with pytest.raises(ValueError, match="more rows than dimensions"):
        whitening_mse(random(2, count, dim), count)


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 8, 2), 4), ((8, 2), 4), ((2, 8, 2), 3), ((2, 8, 2), 0), ((2, 8, 2), 16)]
)
def test_shapes_that_do_not_fit_are_refused(shape, size):
    with pytest.raises(ValueError, match=r"views|divide|subbatch_size"):
        whitening_mse(torch.ones(shape), size)


# precision


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_are_whitened_in_float32_under_autocast(half):
    views = random(2, 32, 8, dtype=half).requires_grad_()
    with torch.autocast("cpu", dtype=half):
        loss, v = whitening_mse(views, 16, generator=seeded()), whiten(views[0])
    wide = views.detach().float()
    assert loss.dtype == v.dtype == torch.float32
    assert loss.item() == whitening_mse(wide, 16, generator=seeded()).item()
    assert (torch.cov(v.detach().T) - torch.eye(8)).abs().max() < 1e-4
    loss.backward()
    assert views.grad.dtype == half
