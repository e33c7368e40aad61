"""NT-Xent and InfoNCE against plain Python loops over floats, closed forms and invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.functional import info_nce, nt_xent


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def unit(row):
    length = math.sqrt(dot(row, row))
    return [x / length for x in row], length


def softmax(logits):
    """Probabilities and log-sum-exp."""
    top = max(logits)
    total = math.fsum(math.exp(x - top) for x in logits)
    return [math.exp(x - top) / total for x in logits], top + math.log(total)


def through_unit(gradient, direction, length):
    """Chain rule through x / |x|: the component along x does not count."""
    along = dot(gradient, direction)
    return [(g - along * u) / length for g, u in zip(gradient, direction, strict=True)]


def loop_nt_xent(z1, z2, temperature):
    """Value and gradient of equation 1 of SimCLR, one anchor at a time."""
    count = len(z1)
    units, lengths = zip(*(unit(row) for row in z1.tolist() + z2.tolist()), strict=True)
    gradients = [[0.0] * z1.shape[1] for _ in units]
    total = 0.0
    for i, anchor in enumerate(units):
        partner = (i + count) % (2 * count)
        others = [a for a in range(2 * count) if a != i]
        probabilities, log_sum = softmax([dot(anchor, units[a]) / temperature for a in others])
        total += log_sum - dot(anchor, units[partner]) / temperature
        for a, probability in zip(others, probabilities, strict=True):
            weight = (probability - (a == partner)) / (temperature * 2 * count)
            for d in range(len(anchor)):
                gradients[i][d] += weight * units[a][d]
                gradients[a][d] += weight * anchor[d]
    rows = [through_unit(*row) for row in zip(gradients, units, lengths, strict=True)]
    rows = torch.tensor(rows, dtype=torch.float64)
    return total / (2 * count), rows[:count], rows[count:]


def loop_info_nce(query, key, negatives, temperature):
    """Value and gradients of equation 1 of MoCo, one query at a time."""
    count, stored = len(query), negatives.tolist()
    total, query_rows, key_rows = 0.0, [], []
    negative_rows = [[0.0] * query.shape[1] for _ in stored]
    for q_row, k_row in zip(query.tolist(), key.tolist(), strict=True):
        (q, q_length), (k, k_length) = unit(q_row), unit(k_row)
        probabilities, log_sum = softmax([dot(q, c) / temperature for c in [k, *stored]])
        total += log_sum - dot(q, k) / temperature
        scale = 1 / (temperature * count)
        to_query = [(probabilities[0] - 1) * scale * x for x in k]
        for n, negative in enumerate(stored):
            for d in range(len(q)):
                to_query[d] += probabilities[n + 1] * scale * negative[d]
                negative_rows[n][d] += probabilities[n + 1] * scale * q[d]
        query_rows.append(through_unit(to_query, q, q_length))
        key_rows.append(through_unit([(probabilities[0] - 1) * scale * x for x in q], k, k_length))
    return total / count, *(torch.tensor(rows, dtype=torch.float64) for rows in (query_rows, key_rows, negative_rows))


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit_rows(count, dim, seed=0):
    return torch.nn.functional.normalize(random(count, dim, seed=seed), dim=1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    ("count", "dim", "temperature"), [(1, 3, 0.5), (2, 2, 0.1), (5, 4, 0.07), (7, 3, 1.0), (8, 16, 0.5)]
)
def test_nt_xent_is_the_loop_in_value_and_gradient(count, dim, temperature, dtype, tolerance):
    z1, z2 = random(count, dim), 3 * random(count, dim, seed=1)
    value, gradient1, gradient2 = loop_nt_xent(z1, z2, temperature)
    a, b = z1.to(dtype).requires_grad_(), z2.to(dtype).requires_grad_()
    loss = nt_xent(a, b, temperature)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    torch.testing.assert_close(a.grad.double(), gradient1, rtol=10 * tolerance, atol=10 * tolerance)
    torch.testing.assert_close(b.grad.double(), gradient2, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    ("count", "dim", "size", "temperature"),
    [(1, 3, 1, 0.5), (4, 2, 9, 0.07), (5, 8, 3, 0.2), (3, 5, 32, 1.0), (2, 4, 0, 0.2)],
)
def test_info_nce_is_the_loop_in_value_and_gradient(count, dim, size, temperature, dtype, tolerance):
    # negatives of any length: the loss takes them as they are stored
    tensors = random(count, dim), 2 * random(count, dim, seed=1), 0.7 * random(size, dim, seed=2)
    value, *gradients = loop_info_nce(*tensors, temperature)
    leaves = [x.to(dtype).requires_grad_() for x in tensors]
    loss = info_nce(*leaves, temperature)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(
            leaf.grad.double(), gradient.reshape(leaf.shape), rtol=10 * tolerance, atol=10 * tolerance
        )


def test_gradcheck():
    z1, z2 = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    negatives = unit_rows(5, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3), (z1, z2))
    assert torch.autograd.gradcheck(lambda q, k, n: info_nce(q, k, n, 0.3), (z1, z2, negatives))


# closed forms


@pytest.mark.parametrize("count", [1, 2, 4, 9])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_of_identical_orthonormal_pairs(count, temperature):
    basis = torch.eye(count, 11, dtype=torch.float64)
    expected = math.log1p((2 * count - 2) * math.exp(-1 / temperature))
    assert nt_xent(basis, 5 * basis, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_nt_xent_of_equal_embeddings(count):
    same = random(1, 6).expand(count, 6)
    assert nt_xent(same, same, 0.1).item() == pytest.approx(math.log(2 * count - 1), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
@pytest.mark.parametrize("size", [1, 100, 65536])
def test_info_nce_of_a_queue_orthogonal_to_query_and_key(size, temperature):
    query = torch.tensor([[2.0, 0.0], [-3.0, 0.0]], dtype=torch.float64)
    negatives = torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(size, 1)
    expected = math.log1p(size * math.exp(-1 / temperature))
    assert info_nce(query, query, negatives, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1, 100, 65536])
def test_info_nce_of_a_collapsed_encoder(size):
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert info_nce(query, query, query.repeat(size, 1), 0.07).item() == pytest.approx(math.log(size + 1), rel=1e-12)


# invariances

few = settings(max_examples=15, deadline=None, derandomize=True)
counts, dims, seeds = st.integers(1, 8), st.integers(2, 6), st.integers(0, 2**31)
temperatures = st.floats(0.05, 2.0)


def rotation(dim, seed):
    return torch.linalg.qr(random(dim, dim, seed=seed))[0]


@few
@given(counts, dims, seeds, temperatures)
def test_nt_xent_does_not_see_image_order_rotation_length_or_which_view_is_first(count, dim, seed, temperature):
    z1, z2 = random(count, dim, seed=seed), random(count, dim, seed=seed + 1)
    value = nt_xent(z1, z2, temperature).item()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    turn = rotation(dim, seed + 2)
    lengths = random(count, 1, seed=seed + 3).exp()
    for same in [(z1[order], z2[order]), (z1 @ turn, z2 @ turn), (z2, z1), (z1 * lengths, z2 / lengths)]:
        assert nt_xent(*same, temperature).item() == pytest.approx(value, rel=1e-9, abs=1e-12)


@few
@given(counts, dims, st.integers(1, 12), seeds, temperatures)
def test_info_nce_does_not_see_image_order_queue_order_rotation_or_length(count, dim, size, seed, temperature):
    query, key, negatives = random(count, dim, seed=seed), random(count, dim, seed=seed + 1), unit_rows(size, dim, seed)
    value = info_nce(query, key, negatives, temperature).item()
    generator = torch.Generator().manual_seed(seed)
    order, queue_order = torch.randperm(count, generator=generator), torch.randperm(size, generator=generator)
    turn = rotation(dim, seed + 2)
    lengths = random(count, 1, seed=seed + 3).exp()
    for same in [
        (query[order], key[order], negatives[queue_order]),
        (query @ turn, key @ turn, negatives @ turn),
        (query * lengths, key / lengths, negatives),
    ]:
        assert info_nce(*same, temperature).item() == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_breaking_the_pairs_changes_nt_xent():
    z1, z2 = random(4, 3), random(4, 3, seed=1)
    assert abs(nt_xent(z1, z2.roll(1, 0), 0.1).item() - nt_xent(z1, z2, 0.1).item()) > 1e-3


# numerics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1e-4, 1e4])
def test_extreme_temperatures_stay_finite_and_right(temperature, dtype):
    z1, z2 = random(6, 8, dtype=dtype).requires_grad_(), random(6, 8, seed=1, dtype=dtype).requires_grad_()
    negatives = unit_rows(20, 8, seed=2).float()
    contrast = nt_xent(z1, z2, temperature)
    queue = info_nce(z1, z2, negatives, temperature)
    (contrast / 64 + queue / 64).backward()
    exact1, exact2 = z1.detach().double(), z2.detach().double()
    assert contrast.item() == pytest.approx(loop_nt_xent(exact1, exact2, temperature)[0], rel=1e-4)
    assert queue.item() == pytest.approx(loop_info_nce(exact1, exact2, negatives.double(), temperature)[0], rel=1e-4)
    assert z1.grad.isfinite().all()
    assert z2.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 1e4])
def test_perfect_and_opposite_pairs_stay_finite(temperature):
    basis = torch.eye(4)
    for other in (basis, -basis):
        z1, z2 = basis.clone().requires_grad_(), other.clone().requires_grad_()
        (nt_xent(z1, z2, temperature) + info_nce(z1, z2, -other, temperature)).backward()
        assert z1.grad.isfinite().all()
        assert z2.grad.isfinite().all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32_under_autocast(half):
    z1, z2 = random(6, 8, dtype=half).requires_grad_(), random(6, 8, seed=1, dtype=half).requires_grad_()
    negatives = unit_rows(9, 8, seed=2).to(half)
    with torch.autocast("cpu", dtype=half):
        losses = nt_xent(z1, z2, 0.1), info_nce(z1, z2, negatives, 0.1)
    wide1, wide2 = z1.detach().float(), z2.detach().float()
    for loss, wide in zip(
        losses, (nt_xent(wide1, wide2, 0.1), info_nce(wide1, wide2, negatives.float(), 0.1)), strict=True
    ):
        assert loss.dtype == torch.float32
        assert loss.item() == wide.item()
    sum(losses).backward()
    assert z1.grad.dtype == half


def test_float32_inputs_are_not_lowered_by_autocast():
    z1, z2, negatives = random(6, 8).float(), random(6, 8, seed=1).float(), unit_rows(9, 8, seed=2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(z1, z2, 0.1), info_nce(z1, z2, negatives, 0.1)
    assert inside[0].item() == nt_xent(z1, z2, 0.1).item()
    assert inside[1].item() == info_nce(z1, z2, negatives, 0.1).item()


# shapes


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,)), ((2, 4, 3), (2, 4, 3))])
def test_nt_xent_refuses_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match="nt_xent"):
        nt_xent(*(torch.ones(shape) for shape in shapes), 0.1)


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 3), (5, 3), (7, 3)),
        ((4, 3), (4, 3), (7, 4)),
        ((4, 3), (4, 3), (3, 7)),
        ((4, 3), (4, 3), (3,)),
        ((3,), (3,), (7, 3)),
        ((2, 4, 3), (2, 4, 3), (7, 3)),
    ],
)
def test_info_nce_refuses_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match="info_nce"):
        info_nce(*(torch.ones(shape) for shape in shapes), 0.1)
