"""Distillation's losses against plain loops over floats, in closed form and in their limits."""

from __future__ import annotations

import math

import pytest
import torch
from slopes import dot, slopes, unit

from selfsup.functional import info_nce, map_distillation, resample_map, similarity_distillation


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.fsum(math.exp(x - top) for x in logits)
    return [math.exp(x - top) / total for x in logits]


def divergence(student: torch.Tensor, teacher: torch.Tensor, queue: torch.Tensor, tau: float, tau_t: float) -> float:
    """One image and one candidate at a time; the image's own feature is a candidate."""
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        s, t = unit(s_row), unit(t_row)
        candidates = [t, *queue.tolist()]
        told = softmax([dot(t, a) / tau_t for a in candidates])
        said = softmax([dot(s, a) / tau for a in candidates])
        total += math.fsum(p * math.log(p / q) for p, q in zip(told, said, strict=True))
    return total / len(student)


@pytest.mark.parametrize(("count", "stored", "dim"), [(1, 1, 2), (3, 7, 4), (5, 2, 3), (4, 20, 8)])
@pytest.mark.parametrize("temperatures", [(0.07, 0.07), (0.5, 0.2), (0.2, 0.7)])
def test_value_and_gradient_are_the_loop_s(
    count: int, stored: int, dim: int, temperatures: tuple[float, float]
) -> None:
    given = random(count, dim), random(count, dim, seed=1), random(stored, dim, seed=2)
    leaves = [x.clone().requires_grad_() for x in given]
    loss = similarity_distillation(*leaves, *temperatures)
    loss.backward()
    assert loss.item() == pytest.approx(divergence(*given, *temperatures), rel=1e-10, abs=1e-13)
    (slope,) = slopes(lambda s: divergence(s, *given[1:], *temperatures), given[0])
    torch.testing.assert_close(leaves[0].grad, slope, rtol=1e-6, atol=1e-8)
    assert leaves[1].grad is None  # the teacher and what it said before are constants
    assert leaves[2].grad is None


def test_a_student_that_is_its_teacher_costs_nothing_and_is_at_rest() -> None:
    teacher, queue = random(4, 5), random(11, 5, seed=2)
    student = (3 * teacher).requires_grad_()
    loss = similarity_distillation(student, teacher, queue)
    loss.backward()
    assert abs(loss.item()) < 1e-14
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-13
    assert similarity_distillation(teacher + 0.1 * random(4, 5, seed=3), teacher, queue).item() > 1e-3


def test_a_cold_teacher_makes_it_infonce_with_its_feature_as_the_key() -> None:
    """The target becomes the image itself, with which its own feature has the largest cosine of all, 1."""
    student, teacher = random(3, 4), random(3, 4, seed=1)
    queue = torch.nn.functional.normalize(random(6, 4, seed=2), dim=1)
    expected = info_nce(student, teacher, queue, 0.2)
    torch.testing.assert_close(similarity_distillation(student, teacher, queue, 0.2, 1e-4), expected)


def test_a_student_at_right_angles_to_all_that_its_teacher_knows() -> None:
    """It says the same of all K + 1; the teacher, of an empty queue and itself, what the softmax of (1, 0 …) is."""
    student, teacher, queue = torch.eye(6)[5:].double(), torch.eye(6)[:1].double(), torch.eye(6)[1:5].double()
    top = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 4)
    entropy = -top * math.log(top) - (1 - top) * math.log((1 - top) / 4)
    assert similarity_distillation(student, teacher, queue, 0.3, 0.5).item() == pytest.approx(math.log(5) - entropy)


def test_the_order_of_the_queue_and_of_the_images_does_not_matter() -> None:
    student, teacher, queue = random(5, 4), random(5, 4, seed=1), random(7, 4, seed=2)
    loss = similarity_distillation(student, teacher, queue)
    torch.testing.assert_close(similarity_distillation(student.flip(0), teacher.flip(0), queue.roll(3, 0)), loss)


def resampled(values: list[list[float]], rows: int, columns: int) -> list[list[float]]:
    """Triangles as wide as the larger of the two cells, one side after the other, weights to a sum of 1."""

    def along(line: list[float], wanted: int) -> list[float]:
        step = len(line) / wanted
        found = []
        for cell in range(wanted):
            centre = (cell + 0.5) * step
            weights = [max(0.0, 1 - abs(place + 0.5 - centre) / max(step, 1.0)) for place in range(len(line))]
            found.append(dot(weights, line) / math.fsum(weights))
        return found

    across = [along(row, columns) for row in values]
    return [list(row) for row in zip(*(along(list(column), rows) for column in zip(*across, strict=True)), strict=True)]


GRIDS = [((2, 2), (2, 2)), ((4, 4), (2, 2)), ((3, 5), (2, 7)), ((1, 1), (3, 2)), ((7, 7), (3, 4)), ((2, 3), (5, 5))]


@pytest.mark.parametrize(("own", "wanted"), GRIDS)
def test_a_resampled_map_is_the_loop_s(own: tuple[int, int], wanted: tuple[int, int]) -> None:
    features = random(2, 3, *own)
    found = resample_map(features, wanted)
    assert found.shape == (2, 3, *wanted)
    for image in range(2):
        for channel in range(3):
            expected = torch.tensor(resampled(features[image, channel].tolist(), *wanted), dtype=torch.float64)
            torch.testing.assert_close(found[image, channel], expected, rtol=1e-6, atol=1e-7)


def test_a_ramp_stays_a_ramp_where_the_edges_do_not_cut_it() -> None:
    """Cell centres keep their place in the image: the coordinate of each is what the map says there."""

    def centres(count: int) -> torch.Tensor:
        return (torch.arange(count, dtype=torch.float64) + 0.5) / count

    ramp = centres(12).expand(1, 1, 12, 12)
    for wanted in (6, 4, 24):
        found = resample_map(ramp, (wanted, wanted))[0, 0]
        inside = slice(2, -2) if wanted == 24 else slice(1, -1)
        torch.testing.assert_close(found[:, inside], centres(wanted).expand(wanted, wanted)[:, inside])


def cells(student: torch.Tensor, teacher: torch.Tensor) -> float:
    total, count = 0.0, 0
    rows, columns = teacher.shape[2:]
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        here = [resampled(channel, rows, columns) for channel in s]
        for y in range(rows):
            for x in range(columns):
                total += dot(unit([channel[y][x] for channel in here]), unit([channel[y][x] for channel in t]))
                count += 1
    return 1 - total / count


@pytest.mark.parametrize(("own", "wanted"), GRIDS)
def test_the_map_s_value_and_gradient_are_the_loop_s(own: tuple[int, int], wanted: tuple[int, int]) -> None:
    student, teacher = random(2, 3, *own), random(2, 3, *wanted, seed=1)
    leaves = [x.clone().requires_grad_() for x in (student, teacher)]
    loss = map_distillation(*leaves)
    loss.backward()
    # torch's weights of resampling are rounded to float32
    assert loss.item() == pytest.approx(cells(student, teacher), rel=1e-6, abs=1e-7)
    (slope,) = slopes(lambda s: cells(s, teacher), student)
    torch.testing.assert_close(leaves[0].grad, slope, rtol=1e-5, atol=1e-7)
    assert leaves[1].grad is None


def test_maps_that_point_alike_cost_nothing_and_opposite_ones_two() -> None:
    teacher = random(2, 4, 3, 3)
    student = (5 * teacher).requires_grad_()
    loss = map_distillation(student, teacher)
    loss.backward()
    assert abs(loss.item()) < 1e-14
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-15
    assert map_distillation(-teacher, teacher).item() == pytest.approx(2)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half: torch.dtype) -> None:
    student, teacher, queue = random(6, 8).to(half), random(6, 8, seed=1).to(half), random(9, 8, seed=2).to(half)
    own, grid = random(2, 3, 4, 4).to(half), random(2, 3, 2, 2, seed=1).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = similarity_distillation(student, teacher, queue), map_distillation(own, grid)
    exact = (
        similarity_distillation(student.double(), teacher.double(), queue.double()),
        map_distillation(own.double(), grid.double()),
    )
    for loss, expected in zip(losses, exact, strict=True):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="similarity_distillation: temperature must be a number above 0"):
        similarity_distillation(random(2, 3), random(2, 3), random(2, 3), 0.0)
    with pytest.raises(ValueError, match=r"similarity_distillation: teacher \[N,D\] has the shape \[2, 4\]"):
        similarity_distillation(random(2, 3), random(2, 4), random(2, 3))
    with pytest.raises(ValueError, match=r"map_distillation: teacher \[B,D,r,c\] has the shape \[2, 4, 2, 2\]"):
        map_distillation(random(2, 3, 2, 2), random(2, 4, 2, 2))
    with pytest.raises(ValueError, match="resample_map: size must be"):
        resample_map(random(2, 3, 2, 2), (0, 2))
