"""SIGReg and the distance to the mean of views against loops over floats, closed forms and invariances."""

import math
from statistics import NormalDist

import pytest
import torch
from slopes import slopes

from selfsup.functional import centroid_distance, sigreg, visreg


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def directions(dim, slices, dtype):
    """The draw that the function makes, a list a direction."""
    columns = torch.randn(dim, slices, generator=generator(), dtype=dtype).T.tolist()
    return [[x / math.sqrt(math.fsum(y * y for y in column)) for x in column] for column in columns]


def loop_sigreg(views, slices, knots, limit, dtype):
    """Value and gradient, knot by knot."""
    count, dim = views.shape[1:]
    total, gradient = 0.0, torch.zeros(views.shape, dtype=torch.float64)
    share = count / (slices * len(views))
    for v, view in enumerate(views.tolist()):
        for column in directions(dim, slices, dtype):
            projected = [math.fsum(a * b for a, b in zip(row, column, strict=True)) for row in view]
            for k in range(knots):
                t = limit * k / (knots - 1)
                width = limit / (knots - 1) * (1 if k in (0, knots - 1) else 2)
                normal = math.exp(-t * t / 2)
                cosine = math.fsum(math.cos(t * y) for y in projected) / count - normal
                sine = math.fsum(math.sin(t * y) for y in projected) / count
                total += share * width * normal * (cosine**2 + sine**2)
                for n, y in enumerate(projected):
                    slope = 2 * t / count * (sine * math.cos(t * y) - cosine * math.sin(t * y))
                    for d in range(dim):
                        gradient[v, n, d] += share * width * normal * slope * column[d]
    return total, gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("views", "count", "dim", "slices", "knots", "limit"),
    [(1, 1, 1, 1, 2, 3.0), (2, 7, 3, 4, 17, 3.0), (3, 5, 6, 2, 8, 5.0)],
)
def test_sigreg_is_the_loop_in_value_and_gradient(views, count, dim, slices, knots, limit, dtype, tolerance):
    z = 1.3 * random(views, count, dim, dtype=dtype) + 0.4
    value, gradient = loop_sigreg(z.double(), slices, knots, limit, dtype)
    leaf = z.clone().requires_grad_()
    loss = sigreg(leaf, slices, knots, limit, generator())
    (3 * loss).backward()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(value, rel=tolerance)
    torch.testing.assert_close(leaf.grad.double(), 3 * gradient, rtol=10 * tolerance, atol=10 * tolerance)


def test_gradcheck():
    z = random(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sigreg(x, 3, 6, generator=generator()), z)
    assert torch.autograd.gradcheck(lambda x: centroid_distance(x, 1), z)


# closed forms; in one dimension every direction is the line itself

FINE = {"slices": 1, "knots": 801, "limit": 12.0}


def gaussian(mean, spread):
    """T / N of N(mean, spread²), however many samples."""
    square = spread**2
    cross = math.exp(-(mean**2) / (2 * (square + 2))) / math.sqrt(square + 2)
    return math.sqrt(2 * math.pi) * ((2 * square + 1) ** -0.5 + 3**-0.5 - 2 * cross)


def test_any_sample_has_the_value_of_the_whole_line():
    rows = (2 * random(40) + 1).tolist()
    pairs = math.fsum(math.exp(-((a - b) ** 2) / 2) for a in rows for b in rows) / 40**2
    alone = math.fsum(math.exp(-(a**2) / 4) for a in rows) / 40
    expected = 40 * math.sqrt(2 * math.pi) * (pairs - math.sqrt(2) * alone + 3**-0.5)
    z = torch.tensor(rows, dtype=torch.float64).view(1, 40, 1)
    assert sigreg(z, **FINE).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("mean", "spread", "stated"), [(0, 1, 0), (1, 1, 0.4443), (2, 1, 1.4084), (0, 2, 0.2361), (0, 0.5, 0.1517)]
)
def test_large_gaussian_samples(mean, spread, stated):
    quantiles = math.sqrt(2) * torch.erfinv(2 * (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000 - 1)
    z = (spread * quantiles + mean).view(1, -1, 1)
    assert gaussian(mean, spread) == pytest.approx(stated, abs=5e-5)
    assert sigreg(z, slices=1, knots=101, limit=10.0).item() / 20000 == pytest.approx(gaussian(mean, spread), abs=1e-4)
    assert sigreg(z, slices=1).item() / 20000 == pytest.approx(stated, abs=1e-3)  # 17 knots up to 3


def test_one_point_costs_the_most_and_pulls_nowhere():
    z = torch.zeros(1, 50, 4, dtype=torch.float64, requires_grad=True)
    fine = sigreg(z, **FINE)
    fine.backward()
    assert fine.item() / 50 == pytest.approx(gaussian(0, 0), rel=1e-6)
    assert gaussian(0, 0) == pytest.approx(0.4089, abs=5e-5)
    assert sigreg(z, 1).item() / 50 == pytest.approx(0.4020, abs=5e-5)
    assert float(z.grad.abs().max()) == 0


@pytest.mark.parametrize("count", [4, 64])
def test_normal_samples_have_the_same_mean_whatever_their_number(count):
    """Which is √(2π) (1 - 3^-½) = 1.0594 on the whole line, and 1.0525 by 17 knots up to 3."""
    draws = random(20000, count, 1, seed=count)  # the deviation of one is about 0.9, that of their mean 0.006
    whole = sigreg(draws, slices=1, knots=33, limit=6.0).item()
    assert whole == pytest.approx(math.sqrt(2 * math.pi) * (1 - 3**-0.5), abs=0.03)
    assert sigreg(draws, slices=1).item() == pytest.approx(1.0525, abs=0.03)


# properties


def test_what_sigreg_sees_of_order_rotation_and_views():
    z = random(2, 30, 4) * torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    value = sigreg(z, 8, generator=generator())
    torch.testing.assert_close(sigreg(z[:, torch.randperm(30)], 8, generator=generator()), value)
    turn = torch.linalg.qr(random(4, 4, seed=3))[0]
    assert abs(sigreg(z @ turn, 8, generator=generator()) - value) > 1e-3
    # over many directions a rotation does not matter
    many = [sigreg(x, 20000, generator=generator(seed)).item() for x, seed in ((z, 1), (z @ turn, 2))]
    assert many[0] == pytest.approx(many[1], rel=0.02)
    apart = [sigreg(view[None], 8, generator=generator()) for view in z]
    torch.testing.assert_close(value, torch.stack(apart).mean())
    assert abs(sigreg(z.flatten(0, 1)[None], 8, generator=generator()) - value) > 1e-3  # views are not pooled


def test_what_is_kept_for_the_gradient_does_not_grow_with_the_knots():
    def kept(knots):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            sigreg(random(2, 50, 4).requires_grad_(), 64, knots, generator=generator())
        return sum(sizes)

    assert kept(33) - kept(3) < 30 * 2 * 64 * 8  # [knots,V,slices], a few times: never a factor of the 50 images


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32_under_autocast(half):
    z = random(2, 16, 8, dtype=half).requires_grad_()
    for function in (
        lambda x: sigreg(x, 6, generator=generator()),
        lambda x: visreg(x, 6, generator()),
        lambda x: centroid_distance(x, 1),
    ):
        with torch.autocast("cpu", dtype=half):
            loss = function(z)
        assert loss.dtype == torch.float32
        assert loss.item() == function(z.detach().float()).item()
        loss.backward()
        assert z.grad.dtype == half


# the distance of the views


@pytest.mark.parametrize(("views", "count", "dim", "centers"), [(2, 3, 4, None), (4, 5, 2, 2), (3, 1, 1, 1)])
def test_centroid_distance_is_the_loop_in_value_and_gradient(views, count, dim, centers):
    z = random(views, count, dim)
    used = views if centers is None else centers
    total, gradient = 0.0, torch.zeros_like(z)
    for n in range(count):
        for d in range(dim):
            mean = math.fsum(z[v, n, d].item() for v in range(used)) / used
            apart = [z[v, n, d].item() - mean for v in range(views)]
            for v in range(views):
                total += apart[v] ** 2 / z.numel()
                through_mean = math.fsum(apart) / used if v < used else 0.0
                gradient[v, n, d] = 2 * (apart[v] - through_mean) / z.numel()
    leaf = z.clone().requires_grad_()
    loss = centroid_distance(leaf, centers)
    loss.backward()
    assert loss.item() == pytest.approx(total, rel=1e-12)
    torch.testing.assert_close(leaf.grad, gradient)


def test_the_distance_to_the_mean_is_that_of_all_pairs():
    z = random(4, 6, 3)
    pairs = [(z[a] - z[b]).square().mean().item() for a in range(4) for b in range(4) if a != b]
    assert centroid_distance(z).item() == pytest.approx(math.fsum(pairs) / 12 / 2 * 3 / 4, rel=1e-12)


# VISReg


def loop_visreg(views, slices, dtype, spreads=None):
    """The value; with ``spreads``, standard deviations that the third term takes as constants."""
    count, dim = views.shape[1:]
    total = 0.0
    for v, view in enumerate(views.tolist()):
        means = [math.fsum(column) / count for column in zip(*view, strict=True)]
        centred = [[x - m for x, m in zip(row, means, strict=True)] for row in view]
        own = [math.sqrt(math.fsum(x * x for x in column) / count) for column in zip(*centred, strict=True)]
        fixed = own if spreads is None else spreads[v]
        total += math.fsum(m * m for m in means) / dim + math.fsum((1 - s) ** 2 for s in own) / dim
        scaled = [[x / (s + 1e-4) for x, s in zip(row, fixed, strict=True)] for row in centred]
        for column in directions(dim, slices, dtype):
            lengths = sorted(math.fsum(a * x for a, x in zip(column, row, strict=True)) for row in scaled)
            for i, y in enumerate(lengths, start=1):
                total += (y - NormalDist().inv_cdf(i / (count + 1))) ** 2 / count / slices
    return total / len(views)


@pytest.mark.parametrize(("views", "count", "dim", "slices"), [(1, 2, 1, 1), (2, 7, 3, 4), (3, 4, 5, 2)])
def test_visreg_is_the_loop_in_value_and_gradient(views, count, dim, slices):
    z = 1.5 * random(views, count, dim) + 0.3
    spreads = z.std(1, correction=0).tolist()
    leaf = z.clone().requires_grad_()
    loss = visreg(leaf, slices, generator())
    loss.backward()
    assert loss.item() == pytest.approx(loop_visreg(z, slices, torch.float64), rel=1e-10)
    (slope,) = slopes(lambda x: loop_visreg(x, slices, torch.float64, spreads), z)
    torch.testing.assert_close(leaf.grad, slope, rtol=1e-6, atol=1e-8)
    value = loop_visreg(z.float().double(), slices, torch.float32)
    assert visreg(z.float(), slices, generator()).item() == pytest.approx(value, rel=1e-4)


def quantiles(count):
    return torch.tensor([NormalDist().inv_cdf(i / (count + 1)) for i in range(1, count + 1)], dtype=torch.float64)


def test_each_term_of_visreg_alone():
    """In one dimension: quantiles of unit deviation, moved and stretched."""
    z = quantiles(200)
    spread = z.std(correction=0)  # below 1, as the quantiles are at i / (N + 1)
    z = (z / spread).view(1, -1, 1)
    shape = float((1 / (1 + 1e-4) - spread) ** 2)
    assert visreg(z, 1, generator()).item() == pytest.approx(shape, rel=1e-9)
    assert visreg(z + 3, 1, generator()).item() == pytest.approx(9 + shape, rel=1e-9)
    assert visreg(5 * z, 1, generator()).item() == pytest.approx(16 + shape, abs=1e-4)


def test_the_pull_of_visreg_does_not_vanish_near_collapse_and_that_of_sigreg_does():
    """Along a dimension it stays near that of the scale alone, which has the length 2 (1 - σ) / (D √N)."""
    base = random(1, 50, 4)
    base = (base - base.mean(1, keepdim=True)) / base.std(1, correction=0, keepdim=True)
    for spread in (1e-2, 1e-3):
        z = (spread * base).requires_grad_()
        sigreg(z, 64, generator=generator()).backward()
        assert z.grad.norm() / 50 < 10 * spread
        z.grad = None
        # the term of the scale by itself
        centred = z - z.mean(1, keepdim=True)
        (1 - centred.norm(dim=1) / 50**0.5).square().mean().backward()
        along = (z.grad * base).sum(1).flatten() / 50**0.5
        assert along.tolist() == pytest.approx([-2 * (1 - spread) / 4 / 50**0.5] * 4, rel=1e-9)
        alone, z.grad = z.grad, None
        visreg(z, 8, generator()).backward()
        assert (z.grad - alone).norm() > 0
        assert z.grad.norm() > 0.5 * alone.norm()


def test_visreg_of_one_point_is_finite_in_value_and_gradient():
    z = torch.ones(2, 6, 3, requires_grad=True)
    loss = visreg(z, 4, generator())
    loss.backward()
    assert loss.item() == pytest.approx(1 + 1 + quantiles(6).square().mean().item(), rel=1e-5)
    assert z.grad.isfinite().all()


def test_visreg_does_not_see_the_order_of_images_and_takes_each_view_alone():
    z = random(2, 12, 3)
    value = visreg(z, 8, generator())
    torch.testing.assert_close(visreg(z[:, torch.randperm(12)], 8, generator()), value)
    torch.testing.assert_close(torch.stack([visreg(view[None], 8, generator()) for view in z]).mean(), value)


@pytest.mark.parametrize("centers", [0, 4, 1.5])
def test_centers_that_are_not_there_are_refused(centers):
    with pytest.raises(ValueError, match="centers"):
        centroid_distance(random(3, 2, 2), centers)
