"""LiDAR, alpha-ReQ, tolerance, CKA and equivariance against loops, SciPy and closed forms."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from selfsup.functional.diagnostics import (
    alpha_req,
    lidar,
    linear_cka,
    orthogonal_equivariance,
    rank_me,
    singular_values,
    tolerance,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(dim, seed=9):
    return torch.linalg.qr(random(dim, dim, seed=seed))[0]


def effective_rank(values):
    shares = [v / sum(values) + 1e-7 for v in values]
    return math.exp(-sum(p * math.log(p) for p in shares))


def scipy_lidar(z, delta):
    count, views, dim = z.shape
    means = [z[i].mean(0) for i in range(count)]
    centre = sum(means) / count
    between, within = np.zeros((dim, dim)), delta * np.eye(dim)
    for i in range(count):
        between += np.outer(means[i] - centre, means[i] - centre) / count
        for v in range(views):
            within += np.outer(z[i, v] - means[i], z[i, v] - means[i]) / (count * views)
    values = scipy.linalg.eigh(between, within, eigvals_only=True).clip(0)
    return effective_rank(sorted(values)[-min(count, dim) :])


@pytest.mark.parametrize(("count", "views", "dim"), [(9, 4, 5), (20, 2, 3), (4, 3, 7)])
@pytest.mark.parametrize("delta", [1e-4, 0.3])
def test_lidar_is_the_generalised_eigenvalue_problem(count, views, dim, delta):
    z = random(count, 1, dim) * torch.linspace(0.5, 3, dim, dtype=torch.float64) + 0.4 * random(count, views, dim)
    assert lidar(z, delta).item() == pytest.approx(scipy_lidar(z.numpy(), delta), rel=1e-6)


def test_lidar_of_large_float32_features_of_low_rank():
    # in float32 the rounding of their covariance is a hundred times delta
    z = 1000 * (random(40, 1, 3) + 0.3 * random(40, 5, 3, seed=1)) @ random(3, 32, seed=2)
    found = lidar(z.float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(scipy_lidar(z.numpy(), 1e-4), rel=1e-3)


def test_lidar_counts_only_what_views_agree_on():
    # three directions tell images apart, five are noise of the views
    signal = torch.cat([random(400, 1, 3), torch.zeros(400, 1, 5, dtype=torch.float64)], 2).expand(-1, 6, -1)
    noise = torch.cat([torch.zeros(400, 6, 3, dtype=torch.float64), random(400, 6, 5, seed=1)], 2)
    z = signal + noise
    assert lidar(z).item() == pytest.approx(3, abs=0.05)
    assert rank_me(z.flatten(0, 1)).item() > 7
    assert lidar(z @ rotation(8)).item() == pytest.approx(lidar(z).item(), rel=1e-6)
    assert lidar(random(50, 1, 4).expand(-1, 3, -1)).item() == pytest.approx(4, abs=0.2)
    with pytest.raises(ValueError, match="two images and two views"):
        lidar(random(5, 1, 3))


def with_spectrum(values, count=64):
    """Centred features whose covariance has these eigenvalues, up to a factor."""
    basis = torch.linalg.qr(torch.cat([torch.ones(count, 1, dtype=torch.float64), random(count, len(values))], 1))[0]
    return basis[:, 1:] * torch.as_tensor(values, dtype=torch.float64).sqrt() @ rotation(len(values)) + 5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_alpha_req_finds_the_exponent(alpha):
    ranks = torch.arange(1, 31, dtype=torch.float64)
    assert alpha_req(with_spectrum(7 * ranks**-alpha), first=1).item() == pytest.approx(alpha, rel=1e-9)
    bent = 7 * ranks**-alpha
    bent[:2] = 100 * bent[0]
    bent[20:] *= 1e-3
    assert alpha_req(with_spectrum(bent), first=3, last=20).item() == pytest.approx(alpha, rel=1e-9)


def test_alpha_req_is_the_weighted_fit_of_numpy():
    values = random(20).abs().sort(descending=True).values + 0.01
    ranks = np.arange(3, 21)
    slope = np.polyfit(np.log(ranks), np.log(values.numpy()[2:]), 1, w=1 / np.sqrt(ranks))[0]
    assert alpha_req(with_spectrum(values)).item() == pytest.approx(-slope, rel=1e-8)


def test_alpha_req_leaves_out_what_is_rounding():
    ranks = torch.arange(1, 11, dtype=torch.float64)
    features = torch.cat([with_spectrum(ranks**-1.5), torch.zeros(64, 6, dtype=torch.float64)], 1) @ rotation(16)
    assert alpha_req(features, first=1).item() == pytest.approx(1.5, rel=1e-6)
    with pytest.raises(ValueError, match="needs two"):
        alpha_req(random(10, 1) * random(1, 5))


def test_singular_values_as_they_come():
    features = rotation(6)[:, :3] * torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64) @ rotation(3)
    torch.testing.assert_close(singular_values(features), torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64))


def test_tolerance_is_the_loop():
    z, labels = random(12, 4), torch.tensor([3, 0, 3, 7, -1, 0, 3, -1, 9, 0, 7, 0])
    unit = [row / math.sqrt(sum(x * x for x in row)) for row in z.numpy()]
    cosines = [
        float(unit[i] @ unit[j])
        for i in range(12)
        for j in range(12)
        if i != j and labels[i] == labels[j] and labels[i] >= 0
    ]
    assert tolerance(z, labels).item() == pytest.approx(sum(cosines) / len(cosines), rel=1e-12)
    assert tolerance(torch.eye(4), torch.zeros(4, dtype=torch.int64)).item() == pytest.approx(0, abs=1e-7)
    assert tolerance(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)).item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="two images"):
        tolerance(z, torch.arange(12))


def loop_hsic(x, y, unbiased):
    """HSIC from full kernels: the trace with the centring matrix, or Song et al.'s unbiased estimator."""
    n = len(x)
    k, l = x.numpy() @ x.numpy().T, y.numpy() @ y.numpy().T  # noqa: E741
    if not unbiased:
        centre = np.eye(n) - 1 / n
        return np.trace(k @ centre @ l @ centre)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    return np.trace(k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ l).sum()


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("count", "dim1", "dim2"), [(20, 3, 5), (6, 9, 8), (5, 30, 2)])
def test_cka_is_that_of_the_kernels(count, dim1, dim2, unbiased):
    x = random(count, dim1) + 2
    y = torch.cat([x[:, :1], random(count, dim2 - 1, seed=1)], 1)
    expected = loop_hsic(x, y, unbiased) / math.sqrt(loop_hsic(x, x, unbiased) * loop_hsic(y, y, unbiased))
    assert linear_cka(x, y, unbiased).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_does_not_see_rotation_scale_and_offset(unbiased):
    x = random(40, 6)
    assert linear_cka(x, 3 * x @ rotation(6) - 7, unbiased).item() == pytest.approx(1, abs=1e-12)
    stretched = x * torch.tensor([1.0, 1, 1, 1, 1, 50], dtype=torch.float64)
    assert linear_cka(x, stretched, unbiased).item() < 0.7
    small = 1e-12 * x.float()
    assert linear_cka(small, x.float(), unbiased).item() == pytest.approx(1, abs=1e-5)


def test_cka_of_unrelated_features_is_zero_only_without_bias():
    pairs = [(random(24, 200, seed=2 * s), random(24, 200, seed=2 * s + 1)) for s in range(30)]
    assert np.mean([linear_cka(x, y).item() for x, y in pairs]) > 0.8
    assert abs(np.mean([linear_cka(x, y, unbiased=True).item() for x, y in pairs])) < 0.03
    with pytest.raises(ValueError, match="does not vary"):
        linear_cka(torch.ones(8, 3), random(8, 3).float())
    with pytest.raises(ValueError, match=r"does not fit|needs? at least"):
        linear_cka(random(8, 3), random(7, 3))


def test_equivariance_is_the_loop():
    u, v = random(7, 4), random(7, 4, seed=1)
    unit = [[row / np.linalg.norm(row) for row in z.numpy()] for z in (u, v)]
    pairs = [(i, j) for i in range(7) for j in range(i)]
    before, after = ([float(rows[i] @ rows[j]) for i, j in pairs] for rows in unit)
    moved = np.mean([(a - b) ** 2 for a, b in zip(before, after, strict=True)])
    unrelated = np.mean([(a - b) ** 2 for a in before for b in after])
    assert orthogonal_equivariance(u, v).item() == pytest.approx(1 - moved / unrelated, rel=1e-10)


def test_a_rotation_of_all_features_is_perfect_equivariance():
    z = random(50, 8)
    assert orthogonal_equivariance(z, 2 * z @ rotation(8)).item() == pytest.approx(1, abs=1e-12)
    assert orthogonal_equivariance(z, random(50, 8, seed=4)).item() == pytest.approx(0, abs=0.1)
    assert orthogonal_equivariance(z, z[torch.randperm(50)]).item() < 0.3
    with pytest.raises(ValueError, match="three"):
        orthogonal_equivariance(z[:2], z[:2])
