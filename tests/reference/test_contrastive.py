"""NT-Xent, InfoNCE and the supervised loss against plain Python loops over floats, closed forms and invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsup.functional import cross_view_nce, info_nce, nearest_neighbor, nt_xent, supervised_contrastive


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


def loop_cross_view_nce(query, key, temperature):
    """Value and gradients of equation 1 of MoCo v3 (without its factor), one query at a time."""
    count = len(query)
    queries, query_lengths = zip(*(unit(row) for row in query.tolist()), strict=True)
    keys, key_lengths = zip(*(unit(row) for row in key.tolist()), strict=True)
    to_query = [[0.0] * query.shape[1] for _ in queries]
    to_key = [[0.0] * query.shape[1] for _ in keys]
    total = 0.0
    for i, q in enumerate(queries):
        probabilities, log_sum = softmax([dot(q, k) / temperature for k in keys])
        total += log_sum - dot(q, keys[i]) / temperature
        for j, k in enumerate(keys):
            weight = (probabilities[j] - (i == j)) / (temperature * count)
            for d in range(len(q)):
                to_query[i][d] += weight * k[d]
                to_key[j][d] += weight * q[d]
    rows = zip((to_query, queries, query_lengths), (to_key, keys, key_lengths), strict=True)
    gradients = [[through_unit(*row) for row in zip(*side, strict=True)] for side in zip(*rows, strict=True)]
    return total / count, *(torch.tensor(side, dtype=torch.float64) for side in gradients)


def loop_supervised(features, is_positive, temperature):
    """Value and gradient of equation 2 of SupCon over the anchors that have a positive.

    ``features`` is ``[V,N,D]``; ``is_positive(i, j)`` tells of two images whether j is a positive of i.
    """
    places = [(v, n) for v in range(features.shape[0]) for n in range(features.shape[1])]
    units, lengths = zip(*(unit(features[place].tolist()) for place in places), strict=True)
    gradients = [[0.0] * features.shape[2] for _ in units]
    total, anchors = 0.0, 0
    for i, place in enumerate(places):
        others = [a for a in range(len(places)) if a != i]
        chosen = [a for a in others if is_positive(place[1], places[a][1])]
        if not chosen:
            continue
        anchors += 1
        probabilities, log_sum = softmax([dot(units[i], units[a]) / temperature for a in others])
        total += math.fsum(log_sum - dot(units[i], units[p]) / temperature for p in chosen) / len(chosen)
        for a, probability in zip(others, probabilities, strict=True):
            weight = (probability - (a in chosen) / len(chosen)) / temperature
            for d in range(len(units[i])):
                gradients[i][d] += weight * units[a][d]
                gradients[a][d] += weight * units[i][d]
    anchors = max(anchors, 1)
    rows = [through_unit([g / anchors for g in row], u, n) for row, u, n in zip(gradients, units, lengths, strict=True)]
    return total / anchors, torch.tensor(rows, dtype=torch.float64).reshape(features.shape)


def same_label(labels):
    return lambda i, j: i == j or (labels[i] >= 0 and labels[i] == labels[j])


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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    ("count", "dim", "temperature"), [(1, 3, 0.5), (2, 2, 0.1), (5, 4, 0.07), (7, 3, 1.0), (8, 16, 0.2)]
)
def test_cross_view_nce_is_the_loop_in_value_and_gradient(count, dim, temperature, dtype, tolerance):
    query, key = random(count, dim), 3 * random(count, dim, seed=1)
    value, *gradients = loop_cross_view_nce(query, key, temperature)
    leaves = [x.to(dtype).requires_grad_() for x in (query, key)]
    loss = cross_view_nce(*leaves, temperature)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad.double(), gradient, rtol=10 * tolerance, atol=10 * tolerance)


LABELS = [
    (1, [0, 1, 0, 1, 2]),  # one view: the image of label 2 has no positive
    (1, [3, 3]),
    (2, [0, 0, 0]),
    (2, [4, 1, 4, -1, -1, 1, 1]),  # unlabelled images are no class of their own
    (3, [-1, 0, 5, 0]),
    (2, [7]),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("views", "labels"), LABELS)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_supervised_contrastive_is_the_loop_in_value_and_gradient(views, labels, temperature, dtype, tolerance):
    features = 2 * random(views, len(labels), 4)
    value, gradient = loop_supervised(features, same_label(labels), temperature)
    leaf = features.to(dtype).requires_grad_()
    loss = supervised_contrastive(leaf if views > 1 else leaf[0], torch.tensor(labels), temperature)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    torch.testing.assert_close(leaf.grad.double(), gradient, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("views", "count", "density"), [(1, 6, 0.3), (2, 5, 0.3), (3, 3, 0.6), (2, 4, 0.0)])
def test_supervised_contrastive_takes_any_mask(views, count, density):
    """Not symmetric; some images have no positive, some not even their own other view."""
    features, mask = random(views, count, 3), random(count, count, seed=5) < density - 0.5
    value, gradient = loop_supervised(features, lambda i, j: bool(mask[i, j]), 0.2)
    leaf = features.clone().requires_grad_()
    loss = supervised_contrastive(leaf if views > 1 else leaf[0], mask, 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-12, abs=1e-12)
    torch.testing.assert_close(leaf.grad, gradient, rtol=1e-11, atol=1e-12)


def test_base_temperature_scales_value_and_gradient():
    features, labels = random(2, 4, 3).requires_grad_(), torch.tensor([0, 1, 0, -1])
    plain = supervised_contrastive(features, labels, 0.1)
    scaled = supervised_contrastive(features, labels, 0.1, base_temperature=0.07)
    assert scaled.item() == pytest.approx(plain.item() / 0.7, rel=1e-12)
    (one,), (other,) = torch.autograd.grad(plain, features), torch.autograd.grad(scaled, features)
    torch.testing.assert_close(other, one / 0.7)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_any_positive_the_loss_is_zero_and_so_is_its_gradient(views, dtype):
    for count in (1, 4):
        features = random(views, count, 3).to(dtype).requires_grad_()
        loss = supervised_contrastive(features, torch.zeros(count, count, dtype=torch.bool), 0.1)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize(("count", "size", "dim"), [(1, 1, 2), (5, 9, 3), (4, 40, 8)])
def test_nearest_neighbor_is_the_candidate_of_the_greatest_cosine(count, size, dim):
    query = random(count, dim, seed=3).requires_grad_()
    candidates = random(size, dim, seed=4) * random(size, 1, seed=6).exp()  # a long one is not nearer
    found = nearest_neighbor(query, candidates)
    assert not found.requires_grad
    units = [unit(row)[0] for row in candidates.tolist()]
    for row, q in zip(found, query.tolist(), strict=True):
        best = max(range(size), key=lambda k: dot(units[k], q))
        assert torch.equal(row, candidates[best])


def test_gradcheck():
    z1, z2 = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    negatives = unit_rows(5, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.3), (z1, z2))
    assert torch.autograd.gradcheck(lambda q, k, n: info_nce(q, k, n, 0.3), (z1, z2, negatives))
    assert torch.autograd.gradcheck(lambda q, k: cross_view_nce(q, k, 0.3), (z1, z2))
    labels = torch.tensor([1, 0, 1])
    assert torch.autograd.gradcheck(lambda a, b: supervised_contrastive(torch.stack([a, b]), labels, 0.3), (z1, z2))


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


@pytest.mark.parametrize("count", [1, 2, 4, 9])
@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_cross_view_nce_of_identical_orthonormal_pairs(count, temperature):
    basis = torch.eye(count, 11, dtype=torch.float64)
    expected = math.log1p((count - 1) * math.exp(-1 / temperature))
    assert cross_view_nce(basis, 5 * basis, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_cross_view_nce_of_equal_embeddings():
    same = random(1, 6).expand(5, 6)
    assert cross_view_nce(same, same, 0.1).item() == pytest.approx(math.log(5), rel=1e-12)


@pytest.mark.parametrize(("classes", "members"), [(1, 3), (2, 2), (3, 4)])
def test_supervised_contrastive_of_classes_that_are_points(classes, members):
    """Each class one point, the points orthogonal: 2m-1 positives at cosine 1, the rest at 0."""
    labels = torch.arange(classes).repeat(members)
    features = torch.eye(classes, 5, dtype=torch.float64)[labels].expand(2, -1, -1)
    positives, negatives = 2 * members - 1, 2 * members * (classes - 1)
    expected = math.log(positives + negatives * math.exp(-1 / 0.2))
    assert supervised_contrastive(features, labels, 0.2).item() == pytest.approx(expected, rel=1e-12)


def test_the_mean_over_positives_stands_outside_the_logarithm():
    """One positive at cosine 1 and one at 0: inside the logarithm the far one would hardly count."""
    features = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[0, 1] = mask[0, 2] = True
    near, far = math.exp(1 / 0.1), 1.0
    outside = -(math.log(near / (near + far)) + math.log(far / (near + far))) / 2
    inside = -math.log((near + far) / 2 / (near + far))
    assert supervised_contrastive(features, mask, 0.1).item() == pytest.approx(outside, rel=1e-12)
    assert abs(inside - outside) > 4


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


@few
@given(counts, dims, seeds, temperatures)
def test_cross_view_nce_does_not_see_image_order_rotation_or_length(count, dim, seed, temperature):
    query, key = random(count, dim, seed=seed), random(count, dim, seed=seed + 1)
    value = cross_view_nce(query, key, temperature).item()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    turn, lengths = rotation(dim, seed + 2), random(count, 1, seed=seed + 3).exp()
    for same in [(query[order], key[order]), (query @ turn, key @ turn), (query * lengths, key / lengths)]:
        assert cross_view_nce(*same, temperature).item() == pytest.approx(value, rel=1e-9, abs=1e-12)


@few
@given(counts, dims, seeds, temperatures)
def test_two_views_with_labels_that_all_differ_are_nt_xent(count, dim, seed, temperature):
    z1, z2 = random(count, dim, seed=seed), random(count, dim, seed=seed + 1)
    value = nt_xent(z1, z2, temperature).item()
    for labels in (torch.arange(count) * 7, torch.full((count,), -1), torch.eye(count, dtype=torch.bool)):
        loss = supervised_contrastive(torch.stack([z1, z2]), labels, temperature).item()
        assert loss == pytest.approx(value, rel=1e-9, abs=1e-12)


@few
@given(counts, st.integers(1, 3), dims, seeds, temperatures)
def test_supervised_contrastive_does_not_see_order_names_of_labels_rotation_or_length(count, views, dim, seed, tau):
    features = random(views, count, dim, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 3, (count,), generator=generator)
    value = supervised_contrastive(features, labels, tau).item()
    order, turn = torch.randperm(count, generator=generator), rotation(dim, seed + 2)
    renamed = torch.where(labels >= 0, 10 - labels, -3)
    flat = features.flatten(0, 1)
    same_image = torch.eye(count, dtype=torch.bool) | ((labels[:, None] == labels) & (labels >= 0))
    for same in [
        (features[:, order], labels[order]),
        (features.flip(0), labels),
        (features, renamed),
        (features @ turn, labels),
        (features * random(views, count, 1, seed=seed + 3).exp(), labels),
        (flat, same_image.repeat(views, views)),
    ]:
        assert supervised_contrastive(*same, tau).item() == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_breaking_the_pairs_changes_nt_xent():
    z1, z2 = random(4, 3), random(4, 3, seed=1)
    assert abs(nt_xent(z1, z2.roll(1, 0), 0.1).item() - nt_xent(z1, z2, 0.1).item()) > 1e-3


def test_breaking_the_pairs_changes_cross_view_nce_and_the_labels_the_supervised_loss():
    z1, z2 = random(4, 3), random(4, 3, seed=1)
    assert abs(cross_view_nce(z1, z2.roll(1, 0), 0.1).item() - cross_view_nce(z1, z2, 0.1).item()) > 1e-3
    both, labels = torch.stack([z1, z2]), torch.tensor([0, 0, 1, 1])
    other = supervised_contrastive(both, labels.roll(1), 0.1).item()
    assert abs(other - supervised_contrastive(both, labels, 0.1).item()) > 1e-3


# numerics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1e-4, 1e4])
def test_extreme_temperatures_stay_finite_and_right(temperature, dtype):
    z1, z2 = random(6, 8, dtype=dtype).requires_grad_(), random(6, 8, seed=1, dtype=dtype).requires_grad_()
    negatives = unit_rows(20, 8, seed=2).float()
    contrast = nt_xent(z1, z2, temperature)
    queue = info_nce(z1, z2, negatives, temperature)
    across = cross_view_nce(z1, z2, temperature)
    labels = [0, 1, 0, -1, 2, 1]
    supervised = supervised_contrastive(torch.stack([z1, z2]), torch.tensor(labels), temperature)
    (contrast / 64 + queue / 64 + across / 64 + supervised / 64).backward()
    exact1, exact2 = z1.detach().double(), z2.detach().double()
    assert contrast.item() == pytest.approx(loop_nt_xent(exact1, exact2, temperature)[0], rel=1e-4)
    assert queue.item() == pytest.approx(loop_info_nce(exact1, exact2, negatives.double(), temperature)[0], rel=1e-4)
    assert across.item() == pytest.approx(loop_cross_view_nce(exact1, exact2, temperature)[0], rel=1e-4)
    exact = loop_supervised(torch.stack([exact1, exact2]), same_label(labels), temperature)[0]
    assert supervised.item() == pytest.approx(exact, rel=1e-4)
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


def in_every_way(z1, z2, negatives):
    return (
        nt_xent(z1, z2, 0.1),
        info_nce(z1, z2, negatives, 0.1),
        cross_view_nce(z1, z2, 0.1),
        supervised_contrastive(torch.stack([z1, z2]), torch.arange(len(z1)) % 3, 0.1),
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32_under_autocast(half):
    z1, z2 = random(6, 8, dtype=half).requires_grad_(), random(6, 8, seed=1, dtype=half).requires_grad_()
    negatives = unit_rows(9, 8, seed=2).to(half)
    with torch.autocast("cpu", dtype=half):
        losses = in_every_way(z1, z2, negatives)
    wide1, wide2 = z1.detach().float(), z2.detach().float()
    for loss, wide in zip(losses, in_every_way(wide1, wide2, negatives.float()), strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == wide.item()
    sum(losses).backward()
    assert z1.grad.dtype == half


def test_float32_inputs_are_not_lowered_by_autocast():
    z1, z2, negatives = random(6, 8).float(), random(6, 8, seed=1).float(), unit_rows(9, 8, seed=2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = in_every_way(z1, z2, negatives)
    assert [loss.item() for loss in inside] == [loss.item() for loss in in_every_way(z1, z2, negatives)]


def test_nearest_neighbor_searches_in_float32_under_autocast():
    """Two candidates that bfloat16 cannot tell apart."""
    query = torch.tensor([[1.0, 1e-3]])
    candidates = torch.tensor([[1.0, 0.0], [1.0, 1e-3]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_neighbor(query, candidates), candidates[1:])


# shapes


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,)), ((2, 4, 3), (2, 4, 3))])
def test_nt_xent_refuses_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match="nt_xent"):
        nt_xent(*(torch.ones(shape) for shape in shapes), 0.1)


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,)), ((2, 4, 3), (2, 4, 3))])
def test_cross_view_nce_refuses_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match="cross_view_nce"):
        cross_view_nce(*(torch.ones(shape) for shape in shapes), 0.1)


@pytest.mark.parametrize(
    ("shape", "positives"),
    [
        ((4,), torch.zeros(4, dtype=torch.long)),
        ((2, 2, 4, 3), torch.zeros(4, dtype=torch.long)),
        ((4, 3), torch.zeros(3, dtype=torch.long)),
        ((2, 4, 3), torch.zeros(2, dtype=torch.long)),
        ((4, 3), torch.zeros(4)),
        ((4, 3), torch.zeros(4, 4, dtype=torch.long)),
        ((4, 3), torch.zeros(4, dtype=torch.bool)),
        ((2, 4, 3), torch.zeros(8, 8, dtype=torch.bool)),
    ],
)
def test_supervised_contrastive_refuses_what_does_not_fit(shape, positives):
    with pytest.raises(ValueError, match="supervised_contrastive"):
        supervised_contrastive(torch.ones(shape), positives, 0.1)


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
