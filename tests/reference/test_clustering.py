"""Sinkhorn, swapped prediction and DINO's loss against plain Python loops over floats, closed forms and invariances."""

import math

import pytest
import torch

from selfsup.functional import dino_loss, sinkhorn, swapped_prediction


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(count, prototypes, seed=0):
    return torch.tanh(random(count, prototypes, seed=seed))


def softmax(row):
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    total = math.fsum(weights)
    return [w / total for w in weights], top + math.log(total)


def loop_sinkhorn(scores, epsilon, iterations):
    """The paper's matrix Q, prototypes by samples: rows to 1/K, columns to 1/B, in turn."""
    columns, rows = len(scores), len(scores[0])
    matrix = [[math.exp(scores[b][k] / epsilon) for b in range(columns)] for k in range(rows)]
    total = math.fsum(x for row in matrix for x in row)
    matrix = [[x / total for x in row] for row in matrix]
    for _ in range(iterations):
        for k in range(rows):
            mass = math.fsum(matrix[k])
            matrix[k] = [x / mass / rows for x in matrix[k]]
        for b in range(columns):
            mass = math.fsum(matrix[k][b] for k in range(rows))
            for k in range(rows):
                matrix[k][b] /= mass * columns
    return torch.tensor([[matrix[k][b] * columns for k in range(rows)] for b in range(columns)], dtype=torch.float64)


def loop_swapped(scores, codes, temperature):
    """Value and gradients with respect to the scores, one pair of views and one image at a time."""
    views, coded, count = len(scores), len(codes), len(scores[0])
    pairs = [(i, v) for i in range(coded) for v in range(views) if v != i]
    total, gradients = 0.0, [[[0.0] * len(scores[0][0]) for _ in range(count)] for _ in range(views)]
    for i, v in pairs:
        for n in range(count):
            probabilities, log_sum = softmax([x / temperature for x in scores[v][n]])
            for k, (q, p) in enumerate(zip(codes[i][n], probabilities, strict=True)):
                total -= q * (scores[v][n][k] / temperature - log_sum)
                gradients[v][n][k] += (p * math.fsum(codes[i][n]) - q) / temperature / len(pairs) / count
    return total / len(pairs) / count, torch.tensor(gradients, dtype=torch.float64)


# Sinkhorn


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("count", "prototypes", "epsilon", "iterations"),
    [(1, 1, 0.05, 1), (4, 3, 0.05, 3), (3, 7, 0.05, 3), (9, 4, 0.5, 1), (6, 6, 0.03, 5), (1, 5, 0.05, 3)],
)
def test_sinkhorn_is_the_loop(count, prototypes, epsilon, iterations, dtype, tolerance):
    scores = cosines(count, prototypes)
    codes = sinkhorn(scores.to(dtype), epsilon, iterations)
    assert codes.dtype == dtype
    expected = loop_sinkhorn(scores.tolist(), epsilon, iterations)
    torch.testing.assert_close(codes.double(), expected, rtol=tolerance, atol=tolerance)


def test_defaults_are_the_papers():
    scores = cosines(5, 4)
    assert torch.equal(sinkhorn(scores), sinkhorn(scores, epsilon=0.05, iterations=3))


@pytest.mark.parametrize(("count", "prototypes"), [(8, 3), (64, 32), (5, 9)])
@pytest.mark.parametrize("iterations", [1, 3, 100])
def test_every_sample_is_assigned_once_and_prototypes_evenly_in_the_end(count, prototypes, iterations):
    codes = sinkhorn(cosines(count, prototypes), 0.1, iterations)
    torch.testing.assert_close(codes.sum(1), torch.ones(count, dtype=torch.float64), rtol=0, atol=1e-12)
    share = torch.full((prototypes,), count / prototypes, dtype=torch.float64)
    if iterations == 100:
        torch.testing.assert_close(codes.sum(0), share, rtol=1e-4, atol=0)
    else:
        assert (codes.sum(0) - share).abs().max() > 1e-4


def test_what_changes_no_code():
    scores = cosines(12, 5)
    codes = sinkhorn(scores)
    torch.testing.assert_close(sinkhorn(scores + 3.0), codes)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sinkhorn(scores[order]), codes[order])
    # what a prototype gets from all samples alike is balanced away at convergence, and not before
    offset = 0.2 * random(5, seed=2)
    torch.testing.assert_close(sinkhorn(scores + offset, 0.2, 500), sinkhorn(scores, 0.2, 500), rtol=1e-9, atol=1e-9)
    per_sample = sinkhorn(scores + random(12, 1, seed=3), 0.2, 500)
    torch.testing.assert_close(per_sample, sinkhorn(scores, 0.2, 500), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prototypes", [1, 4, 300])
def test_equal_scores_give_uniform_codes(prototypes):
    codes = sinkhorn(torch.full((6, prototypes), 0.7))
    torch.testing.assert_close(codes, torch.full((6, prototypes), 1 / prototypes))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_scores_do_not_overflow(half):
    # exp(1 / 0.05) is 4.9e8 and float16 ends at 65504
    scores = torch.eye(8, dtype=half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = sinkhorn(scores)
    assert codes.dtype == torch.float32
    expected = loop_sinkhorn(torch.eye(8).tolist(), 0.05, 3)
    torch.testing.assert_close(codes.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("level", [-1e4, 1e4])
def test_scores_of_any_level_stay_finite(level):
    scores = cosines(6, 4).float()
    torch.testing.assert_close(sinkhorn(scores + level), sinkhorn(scores), rtol=0.1, atol=0.1)
    assert sinkhorn(scores + level).isfinite().all()


def test_codes_carry_no_gradient():
    assert not sinkhorn(cosines(4, 3).requires_grad_()).requires_grad


@pytest.mark.parametrize("arguments", [((3,), 0.05, 3), ((2, 3, 4), 0.05, 3), ((3, 4), 0.0, 3), ((3, 4), 0.05, 0)])
def test_sinkhorn_refuses(arguments):
    shape, epsilon, iterations = arguments
    with pytest.raises(ValueError, match="sinkhorn"):
        sinkhorn(torch.ones(shape), epsilon, iterations)


# swapped prediction


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize(
    ("views", "coded", "count", "prototypes", "temperature"),
    [(2, 2, 1, 3, 0.1), (2, 1, 4, 2, 0.5), (5, 2, 3, 6, 0.1), (3, 3, 2, 4, 1.0), (8, 2, 2, 1, 0.1)],
)
def test_swapped_prediction_is_the_loop(views, coded, count, prototypes, temperature, dtype, tolerance):
    scores = [cosines(count, prototypes, seed=v) for v in range(views)]
    codes = [torch.softmax(random(count, prototypes, seed=50 + i), dim=1) for i in range(coded)]
    value, gradients = loop_swapped([s.tolist() for s in scores], [c.tolist() for c in codes], temperature)
    leaves = [s.to(dtype).requires_grad_() for s in scores]
    targets = [c.to(dtype).requires_grad_() for c in codes]
    loss = swapped_prediction(leaves, targets, temperature)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(expected.double(), gradient, rtol=10 * tolerance, atol=10 * tolerance)
    assert all(target.grad is None for target in targets)


def test_two_views_are_the_explicit_swap():
    s1, s2 = cosines(6, 5), cosines(6, 5, seed=1)
    q1, q2 = sinkhorn(s1), sinkhorn(s2)
    swap = -(q2 * (s1 / 0.1).log_softmax(1)).sum(1).mean() / 2 - (q1 * (s2 / 0.1).log_softmax(1)).sum(1).mean() / 2
    torch.testing.assert_close(swapped_prediction([s1, s2], [q1, q2], 0.1), swap, rtol=1e-12, atol=0)
    torch.testing.assert_close(swapped_prediction([s2, s1], [q2, q1], 0.1), swap, rtol=1e-12, atol=0)
    assert abs(float(swapped_prediction([s1, s2], [q2, q1], 0.1) - swap)) > 1e-3


@pytest.mark.parametrize(("prototypes", "expected"), [(3000, 8.006), (512, 6.238)])
def test_collapse_costs_the_logarithm_of_the_prototypes(prototypes, expected):
    scores = [torch.full((4, prototypes), 0.3)] * 5
    loss = swapped_prediction(scores, [sinkhorn(scores[0]), sinkhorn(scores[1])], 0.1).item()
    assert loss == pytest.approx(math.log(prototypes), rel=1e-5)
    assert loss == pytest.approx(expected, abs=1e-3)


def test_local_views_have_no_codes_but_learn():
    scores = [cosines(4, 3, seed=v).requires_grad_() for v in range(4)]
    codes = [sinkhorn(s) for s in scores[:2]]
    loss = swapped_prediction(scores, codes, 0.1)
    loss.backward()
    assert all(bool(s.grad.ne(0).all()) for s in scores)
    swapped_locals = swapped_prediction([scores[0], scores[1], scores[3], scores[2]], codes, 0.1)
    torch.testing.assert_close(swapped_locals, loss)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_scores_are_computed_in_float32_under_autocast(half):
    scores = [cosines(4, 3, seed=v).to(half) for v in range(3)]
    codes = [sinkhorn(s) for s in scores[:2]]
    outside = swapped_prediction([s.float() for s in scores], codes, 0.1)
    center = 0.1 * random(3).float()
    distilled = dino_loss([s.float() for s in scores], [s.float() for s in scores[:2]], center, 0.1, 0.04)
    with torch.autocast("cpu", dtype=half):
        inside = swapped_prediction(scores, codes, 0.1)
        distilled_inside = dino_loss(scores, scores[:2], center, 0.1, 0.04)
    assert inside.dtype == distilled_inside.dtype == torch.float32
    assert inside.item() == outside.item()
    assert distilled_inside.item() == distilled.item()


@pytest.mark.parametrize(
    ("scores", "codes"),
    [
        ([(2, 3)], [(2, 3)]),
        ([(2, 3)] * 2, []),
        ([(2, 3)] * 2, [(2, 3)] * 3),
        ([(2, 3)] * 2, [(2, 4)]),
        ([(3,)] * 2, [(3,)]),
    ],
)
def test_swapped_prediction_refuses(scores, codes):
    with pytest.raises(ValueError, match="swapped_prediction"):
        swapped_prediction([torch.ones(s) for s in scores], [torch.ones(c) for c in codes], 0.1)


# DINO


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
@pytest.mark.parametrize(("views", "globals_", "count", "outputs"), [(2, 2, 3, 4), (6, 2, 2, 5), (2, 1, 1, 3)])
def test_dino_loss_is_the_loop(views, globals_, count, outputs, dtype, tolerance):
    student = [cosines(count, outputs, seed=v) for v in range(views)]
    teacher = [cosines(count, outputs, seed=20 + v) for v in range(globals_)]
    center = 0.3 * random(outputs, seed=40)
    targets = [
        [softmax([(x - c) / 0.04 for x, c in zip(row, center.tolist(), strict=True)])[0] for row in view.tolist()]
        for view in teacher
    ]
    value, gradients = loop_swapped([s.tolist() for s in student], targets, 0.1)
    leaves, fixed = ([x.to(dtype).requires_grad_() for x in part] for part in (student, teacher))
    middle = center.to(dtype).requires_grad_()
    loss = dino_loss(leaves, fixed, middle, 0.1, 0.04)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(value, rel=tolerance)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(expected.double(), gradient, rtol=10 * tolerance, atol=10 * tolerance)
    assert all(x.grad is None for x in (*fixed, middle))


def test_dino_closed_forms():
    outputs = 16
    # the centre is the teacher's own output: uniform targets against a uniform student
    same = random(1, outputs).expand(4, outputs)
    flat = [torch.zeros(4, outputs, dtype=torch.float64)] * 3
    assert dino_loss(flat, [same, same], same[0], 0.1, 0.04).item() == pytest.approx(math.log(outputs))
    # a hard teacher and a student that agrees with logit 1: ln(1 + (K - 1) exp(-1/τ))
    hard = torch.eye(4, outputs, dtype=torch.float64)
    expected = math.log1p((outputs - 1) * math.exp(-1 / 0.1))
    assert dino_loss([hard] * 2, [hard] * 2, torch.zeros(outputs).double(), 0.1, 1e-3).item() == pytest.approx(expected)


def test_a_constant_in_the_centre_changes_nothing_and_a_sharper_teacher_does():
    student, teacher = [cosines(4, 5, seed=v) for v in range(3)], [cosines(4, 5, seed=9 + v) for v in range(2)]
    center = 0.1 * random(5, seed=30)
    loss = dino_loss(student, teacher, center, 0.1, 0.04)
    torch.testing.assert_close(dino_loss(student, teacher, center + 2, 0.1, 0.04), loss)
    assert abs(float(dino_loss(student, teacher, center, 0.1, 0.5) - loss)) > 1e-3
    assert abs(float(dino_loss(student, teacher, 0 * center, 0.1, 0.04) - loss)) > 1e-3
