"""LOST and TokenCut against plain loops with SciPy, and on graphs whose object is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import ndimage

from selfsup.functional import lost, token_cut
from selfsup.functional.objects import connected

SHAPES = [(3, 4, 5), (5, 5, 3), (1, 7, 2)]


def draw(rows, columns, width, seed):
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(width, generator=generator, dtype=torch.float64)
    return torch.randn(2, rows * columns, width, generator=generator, dtype=torch.float64) + 0.5 * shift


def blocks(rows, columns, object_mask, first, second):
    """Keys that are one vector on the object and another elsewhere."""
    keys = torch.tensor(second, dtype=torch.float64).repeat(rows * columns, 1)
    keys[object_mask.flatten()] = torch.tensor(first, dtype=torch.float64)
    return keys[None]


def part_of(mask, seed):
    labels, _ = ndimage.label(mask)
    return labels == labels.flat[seed] if mask.flat[seed] else np.zeros_like(mask)


def lost_by_a_loop(keys, grid, candidates):
    length = len(keys)
    product = [
        [sum(a * b for a, b in zip(keys[i], keys[j], strict=True)) for j in range(length)] for i in range(length)
    ]
    degree = [sum(product[i][j] > 0 for j in range(length) if j != i) for i in range(length)]
    order = sorted(range(length), key=lambda i: (degree[i], i))
    seed = order[0]
    voters = [i for i in order[:candidates] if product[seed][i] > 0]
    found = np.array([sum(product[i][j] for i in voters) > 0 for j in range(length)]).reshape(grid)
    return part_of(found, seed)


def cut_by_scipy(features, grid, threshold):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    weights = np.where(unit @ unit.T > threshold, 1.0, 1e-5)
    degrees = np.diag(weights.sum(1))
    _, vectors = scipy.linalg.eigh(degrees - weights, degrees)
    cut = vectors[:, 1]
    found = cut > cut.mean()
    seed = np.abs(cut).argmax()
    found = found if found[seed] else ~found
    return part_of(found.reshape(grid), seed)


@pytest.mark.parametrize("candidates", [1, 3, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_lost_is_the_loop(shape, candidates):
    rows, columns, width = shape
    for seed in range(6):
        keys = draw(rows, columns, width, seed)
        found = lost(keys, (rows, columns), candidates)
        for image in range(2):
            expected = lost_by_a_loop(keys[image].tolist(), (rows, columns), candidates)
            np.testing.assert_array_equal(found[image], expected)


@pytest.mark.parametrize("threshold", [0.2, 0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_token_cut_is_scipys_eigenvector(shape, threshold):
    rows, columns, width = shape
    compared = 0
    for seed in range(12):
        features = draw(rows, columns, width, seed)
        found = token_cut(features, (rows, columns), threshold)
        for image in range(2):
            unit = torch.nn.functional.normalize(features[image], dim=1)
            weights = torch.where(unit @ unit.T > threshold, 1.0, 1e-5).double()
            scale = weights.sum(1).rsqrt()
            values, vectors = torch.linalg.eigh(scale[:, None] * weights * scale)
            size = (vectors[:, -2] * scale).abs().sort(descending=True).values
            if values[-2] - values[-3] < 1e-7 or size[0] - size[1] < 1e-9:
                continue  # several vectors, or several seeds, are right
            np.testing.assert_array_equal(
                found[image], cut_by_scipy(features[image].numpy(), (rows, columns), threshold)
            )
            compared += 1
    assert compared > 0


def square(rows, columns, top, left, height, width):
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize("find", [lost, token_cut])
@pytest.mark.parametrize("place", [(1, 1, 2, 3), (0, 0, 2, 2), (3, 2, 3, 2)])
def test_of_two_constant_blocks_the_smaller_is_the_object_exactly(find, place):
    expected = square(6, 6, *place)
    angle = math.radians(100)
    keys = blocks(6, 6, expected, [2 * math.cos(angle), 2 * math.sin(angle)], [1.0, 0.0])
    assert torch.equal(find(keys, (6, 6))[0], expected)
    # and the larger one where it is the object's complement
    assert torch.equal(find(blocks(6, 6, ~expected, [1.0, 0.0], [-1.0, 0.1]), (6, 6))[0], expected)


@pytest.mark.parametrize("find", [lost, token_cut])
def test_only_the_part_with_the_seed_is_found(find):
    mask = square(5, 7, 0, 0, 2, 2) | square(5, 7, 3, 4, 2, 3)
    keys = blocks(5, 7, mask, [-1.0, 0.2], [1.0, 0.0])
    found = find(keys, (5, 7))[0]
    assert any(torch.equal(found, part) for part in (square(5, 7, 0, 0, 2, 2), square(5, 7, 3, 4, 2, 3)))


def test_where_patches_are_alike_there_is_nothing_to_cut():
    assert not bool(token_cut(torch.ones(2, 6, 3), (2, 3)).any())
    assert not bool(token_cut(torch.eye(6)[None], (2, 3)).any())
    assert not bool(token_cut(torch.ones(1, 1, 3), (1, 1)).any())
    assert not bool(lost(torch.zeros(1, 6, 3), (2, 3)).any())


def test_scale_changes_neither_and_images_do_not_see_each_other():
    keys = draw(4, 4, 3, 5).float()
    for find in (lost, token_cut):
        assert torch.equal(find(1000 * keys, (4, 4)), find(keys, (4, 4)))
        assert torch.equal(find(keys[1:], (4, 4))[0], find(keys, (4, 4))[1])


def test_parts_are_those_of_scipy():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 6, 9, generator=generator) < 0.55
    seeds = torch.randint(0, 54, (40,), generator=generator)
    found = connected(masks, seeds)
    for mask, seed, one in zip(masks.numpy(), seeds.tolist(), found, strict=True):
        np.testing.assert_array_equal(one, part_of(mask, seed))


def test_a_grid_of_other_patches_is_refused():
    for find in (lost, token_cut):
        with pytest.raises(ValueError, match="grid must be the rows and columns of 6 patches"):
            find(torch.ones(1, 6, 2), (2, 2))
