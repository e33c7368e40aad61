"""Masked cross-entropy, KoLeo and the Gram loss against plain Python loops, closed forms and invariances."""

import math

import pytest
import torch

from selfsup.functional import gram_loss, koleo_loss, masked_cross_entropy

TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(row):
    length = math.sqrt(math.fsum(x * x for x in row))
    return [x / length for x in row], length


def through_length(gradient, direction, length):
    """Take a gradient with respect to x / |x| back to x."""
    along = math.fsum(g * d for g, d in zip(gradient, direction, strict=True))
    return [(g - along * d) / length for g, d in zip(gradient, direction, strict=True)]


def agree(loss, leaf, value, gradient, tolerance):
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    torch.testing.assert_close(
        leaf.grad.double(),
        torch.tensor(gradient, dtype=torch.float64).reshape(leaf.shape),
        rtol=100 * tolerance,
        atol=10 * tolerance,
    )


# Masked tokens


def loop_cross_entropy(student, target, image, images, temperature):
    total, gradient = 0.0, []
    for row, wanted, n in zip(student.tolist(), target.tolist(), image.tolist(), strict=True):
        weight = 1 / (images * image.tolist().count(n))
        top = max(row)
        powers = [math.exp((x - top) / temperature) for x in row]
        log_sum = top / temperature + math.log(math.fsum(powers))
        total -= weight * math.fsum(q * (x / temperature - log_sum) for q, x in zip(wanted, row, strict=True))
        mass, whole = math.fsum(wanted), math.fsum(powers)
        gradient.append([weight * (p / whole * mass - q) / temperature for p, q in zip(powers, wanted, strict=True)])
    return total, gradient


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(
    ("image", "images", "prototypes", "temperature"),
    [([0], 1, 3, 0.1), ([0, 0, 2, 2, 2, 5], 6, 4, 0.1), ([1, 1, 1], 4, 7, 0.5), ([3, 0, 3, 1], 4, 2, 1.0)],
)
def test_cross_entropy_is_the_loop(image, images, prototypes, temperature, dtype, tolerance):
    image = torch.tensor(image)
    student, target = random(len(image), prototypes), random(len(image), prototypes, seed=1).softmax(1)
    value, gradient = loop_cross_entropy(student, target, image, images, temperature)
    leaf = student.to(dtype).requires_grad_()
    wanted = target.to(dtype).requires_grad_()
    agree(masked_cross_entropy(leaf, wanted, image, images, temperature), leaf, value, gradient, tolerance)
    assert wanted.grad is None


def test_uniform_tokens_cost_the_logarithm_and_half_of_it_where_half_of_the_crops_are_masked():
    target = random(10, 8).softmax(1)
    image = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
    assert masked_cross_entropy(torch.zeros(10, 8), target, image, 4, 0.1).item() == pytest.approx(math.log(8))
    assert masked_cross_entropy(torch.zeros(10, 8), target, image, 8, 0.1).item() == pytest.approx(math.log(8) / 2)


def test_student_that_is_the_teacher_costs_the_entropy():
    logits, image = random(6, 5), torch.tensor([0, 0, 1, 1, 1, 1])
    target = (logits / 0.3).softmax(1)
    entropy = -(target * target.log()).sum(1)
    expected = entropy[:2].mean() / 2 + entropy[2:].mean() / 2
    leaf = logits.requires_grad_()
    loss = masked_cross_entropy(leaf, target, image, 2, 0.3)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert leaf.grad.abs().max() < 1e-15


def test_no_token_costs_nothing_and_stays_part_of_the_graph():
    leaf = torch.zeros(0, 5, requires_grad=True)
    loss = masked_cross_entropy(leaf * 2, torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 3, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert leaf.grad.shape == (0, 5)


@pytest.mark.parametrize(
    ("shape", "image", "words"),
    [((3, 4), [0, 1], "2 entries for 3 tokens"), ((2, 4), [0, 2], "must be from 0 to 1"), ((2,), [0, 1], "shape")],
)
def test_cross_entropy_refuses_what_does_not_fit(shape, image, words):
    with pytest.raises(ValueError, match=f"masked_cross_entropy: .*{words}"):
        masked_cross_entropy(torch.ones(shape), torch.ones(shape), torch.tensor(image), 2, 0.1)


# KoLeo


def loop_koleo(features):
    rows = [unit(row) for row in features.tolist()]
    count, total = len(rows), 0.0
    gradients = [[0.0] * features.shape[1] for _ in rows]
    for i, (x, _) in enumerate(rows):
        cosines = [math.fsum(a * b for a, b in zip(x, y, strict=True)) for y, _ in rows]
        nearest = max((j for j in range(count) if j != i), key=lambda j: cosines[j])
        step = [a - b for a, b in zip(x, rows[nearest][0], strict=True)]
        distance = math.sqrt(math.fsum(a * a for a in step))
        total -= math.log(distance + 1e-8) / count
        for k, a in enumerate(step):
            push = -a / distance / (distance + 1e-8) / count
            gradients[i][k] += push
            gradients[nearest][k] -= push
    return total, [through_length(g, *row) for g, row in zip(gradients, rows, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("shape", [(2, 3), (5, 4), (16, 8), (3, 1)])
def test_koleo_is_the_loop(shape, dtype, tolerance):
    features = random(*shape) if shape[1] > 1 else torch.tensor([[1.0], [-2.0], [-3.0]], dtype=torch.float64)[:2]
    value, gradient = loop_koleo(features)
    leaf = (3 * features).to(dtype).requires_grad_()
    agree(koleo_loss(leaf), leaf, value, [[g / 3 for g in row] for row in gradient], tolerance)


def test_koleo_closed_forms():
    assert koleo_loss(torch.eye(6)).item() == pytest.approx(-0.5 * math.log(2), abs=1e-6)  # -.3466
    pair = random(1, 4)
    assert koleo_loss(torch.cat([pair, -2 * pair])).item() == pytest.approx(-math.log(2), abs=1e-7)  # -.6931


def test_koleo_invariances():
    features = random(8, 5)
    value = koleo_loss(features).item()
    turn = torch.linalg.qr(random(5, 5, seed=3))[0]
    for same in (features @ turn, 7 * features, features * random(8, 1, seed=4).exp(), features.flip(0)):
        assert koleo_loss(same).item() == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_koleo_of_equal_images_is_finite_in_half_precision(half):
    row = random(1, 8).to(half)
    features = torch.cat([row, row, random(2, 8, seed=1).to(half)]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = koleo_loss(features)
    loss.backward()
    assert loss.dtype == torch.float32
    assert features.grad.isfinite().all()
    same = koleo_loss(features[:2].detach())
    assert same.item() == pytest.approx(-math.log(1e-8), rel=1e-6)


def test_koleo_pushes_the_nearest_pair_apart():
    features = torch.nn.functional.normalize(random(6, 4), dim=1).requires_grad_()
    cosines = features.detach() @ features.detach().T - 2 * torch.eye(6)
    i, j = divmod(int(cosines.argmax()), 6)
    koleo_loss(features).backward()
    moved = torch.nn.functional.normalize(features.detach() - 0.01 * features.grad, dim=1)
    assert (moved[i] - moved[j]).norm() > (features[i] - features[j]).norm()


def test_koleo_needs_a_neighbour():
    with pytest.raises(ValueError, match="koleo_loss: features must be of two images"):
        koleo_loss(torch.ones(1, 4))


# Gram


def loop_gram(patches, anchor):
    images, count, dim = patches.shape
    total, gradient = 0.0, []
    for image, held in zip(patches.tolist(), anchor.tolist(), strict=True):
        own, other = [unit(row) for row in image], [unit(row)[0] for row in held]
        rows = [[0.0] * dim for _ in own]
        for i in range(count):
            for j in range(count):
                similar = math.fsum(a * b for a, b in zip(own[i][0], own[j][0], strict=True))
                wanted = math.fsum(a * b for a, b in zip(other[i], other[j], strict=True))
                total += (similar - wanted) ** 2 / images / count**2
                for k in range(dim):
                    rows[i][k] += 2 * (similar - wanted) * own[j][0][k] / images / count**2
                    rows[j][k] += 2 * (similar - wanted) * own[i][0][k] / images / count**2
        gradient.append([through_length(g, *row) for g, row in zip(rows, own, strict=True)])
    return total, gradient


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 5, 4), (3, 4, 2)])
def test_gram_is_the_loop(shape, dtype, tolerance):
    patches, anchor = random(*shape), random(*shape[:2], 6, seed=1)
    value, gradient = loop_gram(patches, anchor)
    leaf, held = patches.to(dtype).requires_grad_(), anchor.to(dtype).requires_grad_()
    agree(gram_loss(leaf, held), leaf, value, gradient, tolerance)
    assert held.grad is None


def test_gram_leaves_turns_lengths_and_common_orders_free():
    patches, anchor = random(2, 6, 5), random(2, 6, 5, seed=1)
    turn = torch.linalg.qr(random(5, 5, seed=2))[0]
    leaf = patches.clone().requires_grad_()
    same = gram_loss(leaf, 3 * patches @ turn)
    same.backward()
    assert same.item() < 1e-30
    assert leaf.grad.abs().max() < 1e-15
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    value = gram_loss(patches, anchor).item()
    assert gram_loss(patches[:, order], anchor[:, order]).item() == pytest.approx(value, rel=1e-12)
    assert abs(gram_loss(patches[:, order], anchor).item() - value) > 1e-3


def test_gram_of_half_precision_is_computed_in_float32_under_autocast():
    patches, anchor = random(2, 6, 5).bfloat16(), random(2, 6, 5, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = gram_loss(patches, anchor)
    assert loss.dtype == torch.float32
    assert loss.item() == gram_loss(patches.float(), anchor.float()).item()


def test_gram_keeps_negative_similarities():
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    across = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert gram_loss(opposite, across).item() == pytest.approx(0.5)  # two of four entries differ by 1


def test_gram_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="gram_loss"):
        gram_loss(torch.ones(2, 3, 4), torch.ones(2, 4, 4))
