"""Losses over pairs, and over many views, against loops over floats: value, gradient, and their limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from slopes import dot, slopes, unit
from torch import Tensor

from selfsup import functional as f
from selfsup.functional.pairs import Pairs

Row = list[float]
#: An anchor's similarities to its positives and to its negatives.
Anchor = tuple[Row, Row]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def anchors_of_views(views: Tensor, labels: Row | None = None, across: bool = False) -> list[Anchor]:
    """Similarities one pair after the other."""
    units = [[unit(row) for row in view] for view in views.tolist()]
    names = list(range(len(units[0]))) if labels is None else labels
    found = []
    for v, view in enumerate(units):
        for i, anchor in enumerate(view):
            positives, negatives = [], []
            for w, other in enumerate(units):
                for j, candidate in enumerate(other):
                    if (v, i) == (w, j) or (across and v == w):
                        continue
                    alike = i == j or (names[i] == names[j] and names[i] >= 0)
                    (positives if alike else negatives).append(dot(anchor, candidate))
            found.append((positives, negatives))
    return found


def anchors_of_queue(query: Tensor, key: Tensor, queue: Tensor, mixed: Tensor | None = None) -> list[Anchor]:
    found = []
    for n, (q, k) in enumerate(zip(query.tolist(), key.tolist(), strict=True)):
        own = [] if mixed is None else mixed[n].tolist()
        found.append(([dot(unit(q), unit(k))], [dot(unit(q), row) for row in queue.tolist() + own]))
    return found


def mean(values: Any) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def total(values: Row, t: float) -> float:
    return math.fsum(math.exp(s / t) for s in values)


def loop_nce(anchors: list[Anchor], t: float) -> float:
    return mean(math.log(total(p + n, t)) - mean(p) / t for p, n in anchors)


def loop_dcl(anchors: list[Anchor], t: float, sigma: float | None = None) -> float:
    if sigma is None:
        return mean(math.log(total(n, t)) - mean(p) / t for p, n in anchors)
    middle = mean(mean(math.exp(s / sigma) for s in p) for p, _ in anchors)
    return mean(math.log(total(n, t)) - mean((2 - math.exp(s / sigma) / middle) * s for s in p) / t for p, n in anchors)


def loop_debiased(anchors: list[Anchor], t: float, prior: float, hardness: float = 0.0) -> float:
    losses = []
    for p, n in anchors:
        count = len(n)
        weights = [math.exp(hardness * s / t) for s in n]
        weighed = math.fsum(w * math.exp(s / t) for w, s in zip(weights, n, strict=True)) / mean(weights)
        g = max((weighed - count * prior * mean(math.exp(s / t) for s in p)) / (1 - prior), count * math.exp(-1 / t))
        losses.append(mean(-math.log(math.exp(s / t) / (math.exp(s / t) + g)) for s in p))
    return mean(losses)


def loop_kernel(anchors: list[Anchor], t: float, gamma: float) -> float:
    def power(similarities: Row) -> Row:
        return [-(math.sqrt(2 - 2 * s + 1e-8) ** gamma) for s in similarities]

    return loop_nce([(power(p), power(n)) for p, n in anchors], t)


def loop_poly(anchors: list[Anchor], t: float, arithmetic: bool) -> float:
    losses = []
    for p, n in anchors:
        ratios = [math.exp(s / t) / (math.exp(s / t) + total(n, t)) for s in p]
        losses.append(-math.log(mean(ratios)) if arithmetic else -mean(map(math.log, ratios)))
    return mean(losses)


def loop_cacr(anchors: list[Anchor], a: float, b: float, up: float, down: float) -> float:
    def weighed(similarities: Row, scale: float) -> float:
        costs = [2 - 2 * s for s in similarities]
        weights = [math.exp(scale * c) for c in costs]
        return math.fsum(w * c for w, c in zip(weights, costs, strict=True)) / math.fsum(weights)

    return mean(a * weighed(p, up) - b * weighed(n, -down) for p, n in anchors)


#: Losses over pairs, each with its loop and its further arguments.
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., float], tuple[Any, ...]]] = {
    "pair_nce": (f.pair_nce, loop_nce, (0.3,)),
    "dcl": (f.decoupled_contrastive, loop_dcl, (0.3,)),
    "dclw": (f.decoupled_contrastive, loop_dcl, (0.3, 0.5)),
    "debiased": (f.debiased_contrastive, loop_debiased, (0.5, 0.2)),
    "clamped": (f.debiased_contrastive, loop_debiased, (0.5, 0.8)),
    "hard": (f.debiased_contrastive, loop_debiased, (0.5, 0.1, 1.5)),
    "kernel-2": (f.kernel_nce, loop_kernel, (0.4, 2.0)),
    "kernel-1": (f.kernel_nce, loop_kernel, (0.4, 1.0)),
    "kernel-half": (f.kernel_nce, loop_kernel, (0.4, 0.5)),
    "geometric": (f.poly_view_loss, loop_poly, (0.3, False)),
    "arithmetic": (f.poly_view_loss, loop_poly, (0.3, True)),
    "cacr": (f.attraction_repulsion, loop_cacr, (1.5, 0.7, 1.0, 2.0)),
}
LABELS = [0, 1, 1, -1, 0, -1]


def check(loss: Callable[..., Tensor], loop: Callable[..., float], *tensors: Tensor) -> None:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = loss(*leaves)
    value.backward()
    assert value.item() == pytest.approx(loop(*tensors), rel=1e-10, abs=1e-12)
    for leaf, expected in zip(leaves, slopes(loop, *tensors), strict=True):
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("views", [2, 3])
def test_of_views(name: str, views: int) -> None:
    loss, loop, given = LOSSES[name]
    check(lambda z: loss(f.view_pairs(z), *given), lambda z: loop(anchors_of_views(z), *given), draw(views, 4, 3))


@pytest.mark.parametrize("name", LOSSES)
def test_of_labels(name: str) -> None:
    loss, loop, given = LOSSES[name]
    labels = torch.tensor(LABELS)
    check(
        lambda z: loss(f.view_pairs(z, labels), *given),
        lambda z: loop(anchors_of_views(z, LABELS), *given),
        draw(2, 6, 3),
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("extra", [False, True])
def test_of_a_queue(name: str, extra: bool) -> None:
    loss, loop, given = LOSSES[name]
    mixed = draw(3, 2, 4, seed=5) / 3 if extra else None
    queue = torch.nn.functional.normalize(draw(5, 4, seed=2), dim=1)
    check(
        lambda q, k: loss(f.queue_pairs(q, k, queue, mixed), *given),
        lambda q, k: loop(anchors_of_queue(q, k, queue, mixed), *given),
        draw(3, 4),
        draw(3, 4, seed=1),
    )


def test_candidates_of_the_own_view_can_be_left_out() -> None:
    check(
        lambda z: f.pair_nce(f.view_pairs(z, across=True), 0.3),
        lambda z: loop_nce(anchors_of_views(z, across=True), 0.3),
        draw(3, 4, 3),
    )


def test_the_first_view_alone_can_be_the_anchor() -> None:
    check(
        lambda z: f.pair_nce(f.view_pairs(z, first_only=True), 0.3),
        lambda z: loop_nce(anchors_of_views(z)[: z.shape[1]], 0.3),
        draw(3, 4, 3),
    )


def test_weights_count_among_positives_and_inside_the_sum_over_negatives() -> None:
    z, weight = draw(3, 4, 3), draw(12, 12, seed=3).exp()
    pairs = f.view_pairs(z)
    rows = []
    for i in range(12):
        positive, negative = pairs.positive[i].nonzero().flatten(), pairs.negative[i].nonzero().flatten()
        s, w = pairs.similarity[i].tolist(), weight[i].tolist()
        whole = math.fsum(w[j] * math.exp(s[j] / 0.3) for j in [*positive.tolist(), *negative.tolist()])
        pull = math.fsum(w[j] * s[j] for j in positive.tolist()) / math.fsum(w[j] for j in positive.tolist())
        rows.append(math.log(whole) - pull / 0.3)
    assert f.pair_nce(pairs._replace(weight=weight), 0.3).item() == pytest.approx(mean(rows), rel=1e-12)


# limits


def test_infonce_of_pairs_is_nt_xent_the_supervised_loss_and_that_of_a_queue() -> None:
    z, queue = draw(2, 6, 3), draw(5, 3, seed=1)
    torch.testing.assert_close(f.pair_nce(f.view_pairs(z), 0.2), f.nt_xent(z[0], z[1], 0.2))
    torch.testing.assert_close(f.pair_nce(f.view_pairs(z, torch.arange(6)), 0.2), f.nt_xent(z[0], z[1], 0.2))
    labels = torch.tensor(LABELS)
    mask = draw(6, 6, seed=4) > 0.8
    assert not mask.any(1).all()
    assert not torch.equal(mask, mask.T)
    for positives in (labels, mask):
        expected = f.supervised_contrastive(z, positives, 0.2)
        torch.testing.assert_close(f.pair_nce(f.view_pairs(z, positives), 0.2), expected)
    torch.testing.assert_close(f.pair_nce(f.queue_pairs(z[0], z[1], queue), 0.2), f.info_nce(z[0], z[1], queue, 0.2))


def test_without_prior_and_hardness_the_debiased_loss_is_infonce() -> None:
    pairs = f.view_pairs(draw(2, 6, 3))
    torch.testing.assert_close(f.debiased_contrastive(pairs, 0.5, 0.0, 0.0), f.pair_nce(pairs, 0.5))


def test_the_correction_stops_at_the_least_that_negatives_can_add_up_to() -> None:
    pairs = f.queue_pairs(draw(2, 3), draw(2, 3), -draw(2, 3)[:1])  # positives at 1
    expected = math.log1p(math.exp(-2 / 0.5))
    assert f.debiased_contrastive(pairs, 0.5, 0.9).item() == pytest.approx(expected, rel=1e-9)


def test_the_gaussian_kernel_is_infonce_at_half_the_temperature() -> None:
    pairs = f.view_pairs(draw(3, 6, 3))
    torch.testing.assert_close(f.kernel_nce(pairs, 0.4, 2.0), f.pair_nce(pairs, 0.2))


def test_a_kernel_of_coinciding_points_has_a_finite_gradient() -> None:
    z = draw(1, 3, 3).repeat(2, 1, 1).requires_grad_()
    f.kernel_nce(f.view_pairs(z), 0.4, 0.5).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_poly_view_of_two_views_is_nt_xent() -> None:
    z = draw(2, 6, 3)
    for arithmetic in (False, True):
        loss = f.poly_view_loss(f.view_pairs(z), 0.2, arithmetic)
        torch.testing.assert_close(loss, f.nt_xent(z[0], z[1], 0.2))


def test_the_arithmetic_mean_lies_below_the_geometric_one() -> None:
    pairs = f.view_pairs(draw(4, 6, 3))
    assert f.poly_view_loss(pairs, 0.2, True) < f.poly_view_loss(pairs, 0.2, False)


def test_cacr_without_attraction_of_far_positives_is_their_mean_distance() -> None:
    pairs = f.view_pairs(draw(3, 5, 3), across=True)
    cost = 2 - 2 * pairs.similarity
    flat = f.attraction_repulsion(pairs, 1.0, 1.0, 1e-9, 1e-9)
    expected = cost[pairs.positive].mean() - cost[pairs.negative].mean()
    torch.testing.assert_close(flat, expected, rtol=1e-7, atol=1e-7)


def test_cacr_can_stop_the_gradient_at_the_weights_of_the_positives() -> None:
    z = draw(3, 4, 3).requires_grad_()
    f.attraction_repulsion(f.view_pairs(z, across=True), 1.0, 0.0, 2.0, 1.0, through_weights=False).backward()
    held = f.view_pairs(z.detach(), across=True)
    weight = torch.where(held.positive, 2.0 * (2 - 2 * held.similarity), -math.inf).softmax(1)
    again = z.detach().clone().requires_grad_()
    ((weight * (2 - 2 * f.view_pairs(again, across=True).similarity)).sum(1).mean()).backward()
    torch.testing.assert_close(z.grad, again.grad)


# MACL


def test_the_temperature_follows_the_alignment_and_carries_no_gradient() -> None:
    z = draw(2, 5, 3).requires_grad_()
    pairs = f.view_pairs(z)
    nearness = mean(mean(p) for p, _ in anchors_of_views(z.detach()))
    found = f.model_aware_temperature(pairs, 0.1, 0.5, 0.2)
    assert found.item() == pytest.approx(0.1 * (1 + 0.5 * (nearness - 0.2)), rel=1e-12)
    assert not found.requires_grad
    assert f.model_aware_temperature(pairs, 0.1, 0.0, 0.2).item() == pytest.approx(0.1)
    assert f.model_aware_temperature(pairs, 0.1, 1e9, 1.0).item() == pytest.approx(0.001)


@pytest.mark.parametrize("views", [2, 3])
def test_anchors_weigh_by_what_their_positive_lacks(views: int) -> None:
    z = draw(views, 4, 3)

    def chances(given: Tensor) -> list[Row]:
        return [[math.exp(s / 0.3) / total(p + n, 0.3) for s in p] for p, n in anchors_of_views(given)]

    held = chances(z)  # no gradient flows through the weights

    def loop(given: Tensor) -> float:
        rows = zip(chances(given), held, strict=True)
        return mean(mean(-math.log(c) / (1 - h) for c, h in zip(*row, strict=True)) for row in rows)

    check(lambda given: f.reweighted_nce(f.view_pairs(given), 0.3), loop, z)


def test_the_weight_of_a_sure_positive_is_finite() -> None:
    z = torch.eye(2).repeat(2, 1, 1).requires_grad_()
    loss = f.reweighted_nce(f.view_pairs(z), 1e-3)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


# global


def test_the_global_loss_weighs_negatives_by_what_is_remembered() -> None:
    z, log_u = draw(2, 4, 3), draw(8, seed=6)
    held = anchors_of_views(z)
    weights = [[math.exp(s / 0.3 - u) / len(n) for s in n] for (_, n), u in zip(held, log_u.tolist(), strict=True)]

    def loop(given: Tensor) -> float:
        rows = zip(anchors_of_views(given), weights, strict=True)
        return mean(dot(w, n) - mean(p) for (p, n), w in rows)

    check(lambda given: f.global_contrastive(f.view_pairs(given), 0.3, log_u), loop, z)
    each = draw(8, 1, seed=7).exp()
    assert not f.global_contrastive(f.view_pairs(z), each, log_u).isnan()


def test_with_the_batch_s_own_normaliser_its_gradient_is_that_of_dcl_times_the_temperature() -> None:
    gradients = []
    for which in ("global", "dcl"):
        z = draw(3, 4, 3).requires_grad_()
        pairs = f.view_pairs(z)
        if which == "global":
            f.global_contrastive(pairs, 0.3, f.log_mean_exp_negatives(pairs, 0.3).detach()).backward()
        else:
            (0.3 * f.decoupled_contrastive(pairs, 0.3)).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients)


def test_the_log_of_the_mean_exponential() -> None:
    z, each = draw(2, 4, 3), draw(8, 1, seed=7).exp()
    expected = [
        math.log(total(n, t) / len(n)) for (_, n), t in zip(anchors_of_views(z), each[:, 0].tolist(), strict=True)
    ]
    torch.testing.assert_close(f.log_mean_exp_negatives(f.view_pairs(z), each), z.new_tensor(expected))


# many views


def loop_mv_info_nce(views: Tensor, t: float) -> float:
    anchors, images = anchors_of_views(views), views.shape[1]
    return mean(
        -math.log(
            math.fsum(total(p, t) for p, _ in anchors[i::images])
            / math.fsum(total(p + n, t) for p, n in anchors[i::images])
        )
        for i in range(images)
    )


def loop_mv_dhel(views: Tensor, t: float) -> float:
    units = [[unit(row) for row in view] for view in views.tolist()]
    losses = []
    for i in range(views.shape[1]):
        together = math.fsum(
            math.exp(dot(units[a][i], units[b][i]) / t) for a in range(len(units)) for b in range(a + 1, len(units))
        )
        spread = [
            math.log(math.fsum(math.exp(dot(view[i], other) / t) for j, other in enumerate(view) if j != i))
            for view in units
        ]
        losses.append(math.fsum(spread) - math.log(together))
    return mean(losses)


def distance(a: Row, b: Row) -> float:
    return math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def loop_uniformity(points: list[Row], t: float) -> float:
    return math.log(
        mean(math.exp(-t * distance(a, b) ** 2) for i, a in enumerate(points) for j, b in enumerate(points) if i != j)
    )


def loop_align_uniform(views: Tensor, alpha: float, t: float) -> float:
    units = [[unit(row) for row in view] for view in views.tolist()]
    align = mean(
        distance(a, b) ** alpha
        for first in range(len(units))
        for second in range(first + 1, len(units))
        for a, b in zip(units[first], units[second], strict=True)
    )
    return align + 0.7 * mean(loop_uniformity(view, t) for view in units)


def centroids(views: Tensor) -> list[Row]:
    units = [[unit(row) for row in view] for view in views.tolist()]
    return [[mean(column) for column in zip(*rows, strict=True)] for rows in zip(*units, strict=True)]


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize(
    ("loss", "loop"),
    [
        (lambda z: f.mv_info_nce(z, 0.3), lambda z: loop_mv_info_nce(z, 0.3)),
        (lambda z: f.mv_dhel(z, 0.3), lambda z: loop_mv_dhel(z, 0.3)),
        (
            lambda z: sum(w * x for w, x in zip((1.0, 0.7), f.align_uniform(z, alpha=1.5, t=3.0), strict=True)),
            lambda z: loop_align_uniform(z, 1.5, 3.0),
        ),
        (lambda z: f.decoupled_uniformity(z, 1.5), lambda z: loop_uniformity(centroids(z), 1.5)),
    ],
    ids=["mv_info_nce", "mv_dhel", "align_uniform", "decoupled_uniformity"],
)
def test_of_many_views(views: int, loss: Any, loop: Any) -> None:
    check(loss, loop, draw(views, 4, 3))


def test_align_uniform_of_a_queue() -> None:
    queue, mixed = draw(5, 3, seed=2), draw(4, 2, 3, seed=5)

    def loop(z: Tensor) -> float:
        anchors = anchors_of_queue(z[0], z[1], queue, mixed)
        align = mean(2 - 2 * p[0] for p, _ in anchors)
        return align + math.log(mean(math.exp(-2 * (2 - 2 * s)) for _, n in anchors for s in n))

    check(lambda z: sum(f.align_uniform(z, queue, mixed)), loop, draw(2, 4, 3))


def test_mv_dhel_of_two_views_is_its_closed_form() -> None:
    z = torch.nn.functional.normalize(draw(2, 5, 3), dim=-1)
    spread = [((view @ view.T) / 0.2).fill_diagonal_(-math.inf).logsumexp(1) for view in z]
    expected = (spread[0] + spread[1] - (z[0] * z[1]).sum(1) / 0.2).mean()
    torch.testing.assert_close(f.mv_dhel(z, 0.2), expected)


def test_alignment_and_uniformity_are_those_that_are_measured() -> None:
    z = draw(2, 6, 3)
    align, uniform = f.align_uniform(z)
    torch.testing.assert_close(align, f.alignment(z[0], z[1]))
    torch.testing.assert_close(uniform, (f.uniformity(z[0]) + f.uniformity(z[1])) / 2)


def test_views_that_agree_leave_the_uniformity_of_the_images() -> None:
    z = draw(6, 3)
    torch.testing.assert_close(f.decoupled_uniformity(torch.stack([z, z, z])), f.uniformity(z))


def test_a_prior_kernel_smooths_the_centroids_by_a_ridge_regression_on_it() -> None:
    z, root = draw(2, 4, 3), draw(4, 2, seed=8)
    kernel = root @ root.T
    smooth = torch.linalg.inv(kernel + 0.1 * torch.eye(4, dtype=torch.float64)) @ kernel

    def loop(given: Tensor) -> float:
        rows = centroids(given)
        return loop_uniformity([[dot(w, column) for column in zip(*rows, strict=True)] for w in smooth.tolist()], 2.0)

    check(lambda given: f.decoupled_uniformity(given, 2.0, kernel, 0.1), loop, z)
    nothing = f.decoupled_uniformity(z, 2.0, 1e9 * torch.eye(4, dtype=torch.float64), 1e-3)
    torch.testing.assert_close(nothing, f.decoupled_uniformity(z))


# what does not fit


def test_an_anchor_without_negatives_counts_nothing() -> None:
    pairs = f.view_pairs(draw(2, 3, 3), torch.zeros(3, dtype=torch.long))
    assert not pairs.negative.any()
    assert f.decoupled_contrastive(pairs, 0.2).item() == 0


def test_what_does_not_fit_is_refused() -> None:
    z = draw(2, 4, 3)
    with pytest.raises(ValueError, match=r"positives must be bool \[4,4\], got bool \[3, 4\]"):
        f.view_pairs(z, torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="two images at least"):
        f.mv_dhel(z[:, :1], 0.2)
    with pytest.raises(ValueError, match="2 views at least"):
        f.mv_info_nce(z[:1], 0.2)
    with pytest.raises(ValueError, match="prior must be a number at least 0 and below 1"):
        f.debiased_contrastive(f.view_pairs(z), 0.2, 1.0)
    with pytest.raises(ValueError, match="mixed"):
        f.queue_pairs(z[0], z[1], z[0], draw(3, 2, 3))


def test_half_precision_is_taken_in_float32() -> None:
    z = draw(2, 6, 3).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pairs: Pairs = f.view_pairs(z)
        losses = [f.pair_nce(pairs, 0.2), f.mv_dhel(z, 0.2), *f.align_uniform(z), f.decoupled_uniformity(z)]
    for loss in losses:
        assert loss.dtype == torch.float32
    torch.testing.assert_close(losses[0], f.pair_nce(f.view_pairs(z.float()), 0.2))
