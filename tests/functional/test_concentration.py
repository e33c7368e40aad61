"""Augmented distance, misalignment, overlap of classes, and alignment of places, against loops and planted cases."""

import math

import pytest
import torch

from selfsup.functional.concentration import augmented_distance, class_overlap, misaligned_share
from selfsup.functional.dense import dense_alignment, match_accuracy


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def length(row):
    return math.sqrt(sum(x * x for x in row))


def unit(row):
    return [x / length(row) for x in row]


def distance(a, b):
    return length([x - y for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize("shape", [(5, 3, 4), (2, 1, 7), (4, 2, 1)])
def test_distances_and_shares_are_the_loop(shape):
    views = random(*shape)
    rows = views.tolist()
    found = augmented_distance(views)
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            expected = 0.0 if i == j else min(distance(a, b) for a in one for b in other)
            assert found[i, j].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if shape[1] > 1:
        apart = [max(distance(unit(a), unit(b)) for a in one for b in one) for one in rows]
        for epsilon in (0.3, 0.9, 1.5):
            expected = sum(x > epsilon for x in apart) / len(apart)
            assert misaligned_share(views, epsilon).item() == pytest.approx(expected)


def test_overlap_of_classes_is_the_loop():
    views, labels = random(7, 2, 3), torch.tensor([4, 9, 4, 1, 1, 9, 4])
    table = class_overlap(views, labels)
    centres = []
    for label in (1, 4, 9):
        rows = [
            unit(row)
            for image, own in zip(views.tolist(), labels.tolist(), strict=True)
            if own == label
            for row in image
        ]
        centres.append([sum(column) / len(rows) for column in zip(*rows, strict=True)])
    for k, one in enumerate(centres):
        for m, other in enumerate(centres):
            expected = sum(a * b for a, b in zip(one, other, strict=True))
            assert table[k, m].item() == pytest.approx(expected, rel=1e-9)


def test_planted_classes():
    # two classes on two axes: views of a class are equal, the centres are orthogonal and of length one
    labels = torch.tensor([0, 0, 1, 1])
    views = torch.eye(2, dtype=torch.float64)[labels][:, None].repeat(1, 3, 1)
    torch.testing.assert_close(class_overlap(views, labels), torch.eye(2, dtype=torch.float64))
    assert misaligned_share(views, 0.01) == 0
    torch.testing.assert_close(augmented_distance(views)[0], torch.tensor([0, 0, 2**0.5, 2**0.5], dtype=torch.float64))
    # one view of the first image is that of the other class: the two images touch, and are not aligned
    views[0, 1] = views[2, 0]
    assert augmented_distance(views)[0, 2] == 0
    assert misaligned_share(views, 1.0).item() == 0.25
    assert misaligned_share(views, 1.5) == 0, "√2 apart"


def test_refusals_name_the_argument():
    with pytest.raises(ValueError, match="at least two views"):
        misaligned_share(random(3, 1, 2), 0.5)
    with pytest.raises(ValueError, match="epsilon must be a number above 0"):
        misaligned_share(random(3, 2, 2), 0.0)
    with pytest.raises(ValueError, match="labels must be of at least two classes"):
        class_overlap(random(3, 2, 2), torch.zeros(3, dtype=torch.long))
    first = random(1, 2, 2, 2)
    nothing = torch.zeros(1, 4, 4, dtype=torch.bool)
    for function in (dense_alignment, match_accuracy):
        with pytest.raises(ValueError, match=f"{function.__name__}: mask holds no pair"):
            function(first, first, nothing)
        with pytest.raises(ValueError, match="mask must be bool"):
            function(first, first, nothing.int())


@pytest.mark.parametrize("alpha", [1, 2, 3.0])
def test_dense_alignment_is_the_loop_with_its_gradient(alpha):
    first, second = random(2, 3, 2, 2).requires_grad_(), random(2, 3, 2, 2, seed=1).requires_grad_()
    mask = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2)) < 0.4
    terms = []
    for b in range(2):
        for i in range(4):
            for j in range(4):
                if mask[b, i, j]:
                    u, v = first[b, :, i // 2, i % 2], second[b, :, j // 2, j % 2]
                    terms.append((u / u.norm() - v / v.norm()).norm() ** alpha)
    expected = sum(terms) / len(terms)
    found = dense_alignment(first, second, mask, alpha)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    own, wanted = (torch.autograd.grad(value, (first, second)) for value in (found, expected))
    for a, b in zip(own, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_cells_without_a_direction_lie_in_the_middle_of_the_sphere():
    first, second = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    assert dense_alignment(first, second, torch.ones(1, 1, 1, dtype=torch.bool)).item() == pytest.approx(1)


def test_matches_of_a_mirrored_map():
    first = random(3, 8, 3, 3)
    mirrored = first.flip(3)
    cells = torch.arange(9).view(3, 3)
    mask = torch.zeros(3, 9, 9, dtype=torch.bool)
    mask[:, cells.flatten(), cells.flip(1).flatten()] = True
    assert match_accuracy(first, mirrored, mask) == 1
    assert dense_alignment(first, mirrored, mask).item() == pytest.approx(0, abs=1e-12)
    # of the columns the middle one stays; the mask of an unmoved map finds that third alone
    unmoved = torch.eye(9, dtype=torch.bool).repeat(3, 1, 1)
    assert match_accuracy(first, mirrored, unmoved).item() == pytest.approx(1 / 3)
    # cells without a pair do not count
    unmoved[:, [0, 2, 3, 5, 6, 8]] = False
    assert match_accuracy(first, mirrored, unmoved) == 1
