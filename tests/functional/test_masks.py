"""Mask samplers: exact counts, how often each place is masked, plain loops with the same numbers, and their keys."""

import itertools
import math
from functools import partial

import pytest
import torch
from scipy import stats

from selfsup.functional import (
    block_mask,
    grid_mask,
    inverse_block_mask,
    kept_index,
    mask_of,
    mixed_ratios,
    multi_block_masks,
    random_mask,
    stratified_ratios,
)
from selfsup.functional.masks import masked_count, masked_places
from selfsup.random import uniform

GRIDS = [(14, 14), (8, 8), (4, 4), (3, 5), (6, 16), (2, 2)]
SAMPLERS = {
    "random": lambda draw, grid: random_mask(draw, grid, 0.6),
    "grid": lambda draw, grid: grid_mask(draw, grid, 0.6, cell_of(grid)),
    "block": lambda draw, grid: block_mask(draw, grid, masked_count(grid[0] * grid[1], 0.4)),
    "block, all": lambda draw, grid: block_mask(draw, grid, grid[0] * grid[1]),
    "inverse block": lambda draw, grid: inverse_block_mask(draw, grid, 0.65),
    "inverse block, few": lambda draw, grid: inverse_block_mask(draw, grid, 0.2),
}


def cell_of(grid):
    return 2 if grid[0] % 2 == grid[1] % 2 == 0 else 1


def numbers(count, seed=0):
    return partial(uniform, seed, torch.arange(count))


@pytest.mark.parametrize("length", [4, 49, 64, 100, 196])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.15, 0.5, 0.6, 0.75, 0.9, 1.0])
def test_ratios_become_the_nearest_count(length, ratio):
    """int(100 · (1 - 0.9)) is 9: what stays is not to be computed that way."""
    masked = masked_count(length, ratio)
    assert abs(masked - ratio * length) <= 0.5 + 1e-9
    assert random_mask(numbers(3), (1, length), ratio).sum(1).tolist() == [masked] * 3
    assert masked_count(100, 0.9) == 90


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_counts_are_exact_in_every_image(name, grid):
    mask = SAMPLERS[name](numbers(500), grid)
    length = grid[0] * grid[1]
    assert mask.dtype == torch.bool
    assert mask.shape == (500, length)
    wanted = {"random": masked_count(length, 0.6), "block": masked_count(length, 0.4), "block, all": length}
    wanted |= {"inverse block": masked_count(length, 0.65), "inverse block, few": masked_count(length, 0.2)}
    cell = cell_of(grid)
    wanted["grid"] = cell**2 * masked_count(length // cell**2, 0.6)
    assert set(mask.sum(1).tolist()) == {wanted[name]}


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_has_its_mask_in_any_batch(name):
    draw = partial(uniform, 3, torch.tensor([5, 17, 4, 99, 0]))
    whole = SAMPLERS[name](draw, (8, 8))
    alone = SAMPLERS[name](partial(uniform, 3, torch.tensor([4, 99])), (8, 8))
    assert torch.equal(whole[2:4], alone)
    if name != "block, all":
        assert not torch.equal(whole, SAMPLERS[name](partial(uniform, 4, torch.tensor([5, 17, 4, 99, 0])), (8, 8)))
        assert len(set(map(tuple, whole.tolist()))) == 5


@pytest.mark.parametrize("name", ["random", "grid", "inverse block"])
def test_every_place_is_masked_equally_often(name):
    """The marginal rate of each place is the ratio, which symmetry gives these samplers."""
    draws = 10_000
    mask = SAMPLERS[name](numbers(draws), (8, 8))
    rate = mask[0].sum().item() / 64
    deviation = math.sqrt(rate * (1 - rate) / draws)
    assert (mask.double().mean(0) - rate).abs().max() < 4.5 * deviation


def test_pairs_of_random_masks_are_those_of_drawing_without_putting_back():
    draws, length, masked = 20_000, 12, 5
    mask = random_mask(numbers(draws), (3, 4), masked / length).double()
    both = (mask.T @ mask) / draws
    rate = masked * (masked - 1) / (length * (length - 1))
    off = both[~torch.eye(length, dtype=torch.bool)]
    assert (off - rate).abs().max() < 4.5 * math.sqrt(rate * (1 - rate) / draws)


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (4, 4), (6, 16)])
def test_block_masks_reach_every_row_and_column_alike(grid):
    mask = block_mask(numbers(5000), grid, masked_count(grid[0] * grid[1], 0.4)).view(-1, *grid).double().mean(0)
    assert mask.min() > 0.03
    # mirrored places are equally likely; the middle is masked more often than the edge
    for mirrored in (mask.flip(0), mask.flip(1)):
        assert (mask - mirrored).abs().max() < 5 * math.sqrt(0.5 / 5000)
    assert mask[grid[0] // 2, grid[1] // 2] > mask[0, 0]


def block_loop(row, grid, wanted, least=4, aspect=0.3):
    """The sampler as BEiT's code tells it, one token at a time, with the same numbers in the same places of the row."""
    height, width = grid
    masked, refused, attempt = set(), 0, 0
    while len(masked) < wanted and refused < 10:
        u = row[2 + height * width + 4 * attempt :][:4]
        attempt += 1
        room = wanted - len(masked)
        area = least * (1 - u[0]) + room * u[0]
        ratio = math.exp(math.log(aspect) + u[1] * (math.log(1 / aspect) - math.log(aspect)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        new = set()
        if h < height and w < width:
            top, left = int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1))
            new = {(y, x) for y in range(top, top + h) for x in range(left, left + w)} - masked
        if 0 < len(new) <= room:
            masked |= new
            refused = 0
        else:
            refused += 1
    free = [(y, x) for y in range(height) for x in range(width) if (y, x) not in masked]
    free.sort(key=lambda place: row[2 + place[0] * width + place[1]])
    masked |= set(free[: wanted - len(masked)])
    return [(y, x) in masked for y in range(height) for x in range(width)]


@pytest.mark.parametrize(("grid", "least"), [((14, 14), 4), ((14, 14), 16), ((4, 4), 4), ((6, 16), 4), ((8, 8), 4)])
def test_block_masks_are_the_loop(grid, least):
    length = grid[0] * grid[1]
    counts = torch.tensor([0, 1, length // 10, length // 2, round(0.61 * length), length] * 5)
    draw = numbers(len(counts), seed=11)
    rows = draw(2 + length + 4 * 400).tolist()
    expected = [block_loop(row, grid, count, least) for row, count in zip(rows, counts.tolist(), strict=True)]
    assert block_mask(draw, grid, counts, least).tolist() == expected


def inverse_loop(row, grid, seen):
    height, width = grid
    low = max(math.log(0.5), math.log(seen / width**2))
    high = min(math.log(2), math.log(height**2 / seen))
    aspect = math.exp(low + (high - low) * row[0])
    h, w = math.ceil(math.sqrt(seen * aspect)), math.ceil(math.sqrt(seen / aspect))
    inside = list(itertools.product(range(h), range(w)))[:seen]
    down, right = int(row[1] * height), int(row[2] * width)
    kept = {((y + down) % height, (x + right) % width) for y, x in inside}
    return [(y, x) not in kept for y in range(height) for x in range(width)]


@pytest.mark.parametrize(
    ("grid", "ratio"), [((14, 14), 0.65), ((8, 8), 0.65), ((4, 4), 0.4), ((6, 10), 0.8), ((4, 8), 0.4)]
)
def test_inverse_blocks_are_the_loop(grid, ratio):
    length = grid[0] * grid[1]
    draw = numbers(50, seed=2)
    expected = [inverse_loop(row, grid, length - round(ratio * length)) for row in draw(3).tolist()]
    assert inverse_block_mask(draw, grid, ratio).tolist() == expected


def test_inverse_blocks_at_the_ends():
    assert inverse_block_mask(numbers(2), (4, 4), 1.0).all()
    assert not inverse_block_mask(numbers(2), (4, 4), 0.0).any()


def test_cells_are_masked_whole():
    mask = grid_mask(numbers(200), (6, 8), 0.6, 2).view(-1, 3, 2, 4, 2)
    sums = mask.sum((2, 4))
    assert set(sums.unique().tolist()) == {0, 4}
    for grid in ((6, 8), (8, 6)):
        with pytest.raises(ValueError, match=f"cell=4 does not divide the grid of {grid[0]}×{grid[1]}"):
            grid_mask(numbers(1), grid, 0.6, 4)


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (8, 8), (7, 7), (4, 4), (6, 16), (3, 3), (2, 2), (2, 3)])
def test_context_and_targets_are_disjoint_and_the_sampler_ends_on_every_grid(grid):
    length = grid[0] * grid[1]
    for seed in range(20):
        hidden, targets = multi_block_masks(numbers(64, seed), grid)
        assert targets.shape == (64, 4, length)
        assert targets.sum(2).unique().numel() == 1
        assert hidden.sum(1).unique().numel() == 1
        assert hidden.sum(1)[0] < length
        assert not (~hidden[:, None] & targets).any()
        rows, columns = targets.view(64, 4, *grid).any(3).sum(2), targets.view(64, 4, *grid).any(2).sum(2)
        assert (rows * columns == targets.sum(2)).all()  # rectangles
        if length >= 64:
            assert (~hidden).sum(1)[0] >= 10


def test_targets_and_contexts_reach_the_last_row_and_column():
    """The authors' code never reaches them, in 20 000 blocks."""
    targets, contexts = torch.zeros(14, 14), torch.zeros(14, 14)
    for seed in range(100):
        hidden, blocks = multi_block_masks(numbers(100, seed), (14, 14))
        targets += blocks.sum((0, 1)).view(14, 14)
        contexts += (~hidden).sum(0).view(14, 14)
    for total in (targets, contexts):
        share = total / 10_000
        assert share.min() > 0.01
        for mirrored in (share.flip(0), share.flip(1)):  # no side is preferred, by the cut to one number either
            assert (share - mirrored).abs().max() < 0.06 * share.max() + 0.02


def test_sizes_of_blocks_have_the_papers_ranges():
    """A share of the grid in [0.15, 0.2] and a shape in [0.75, 1.5], up to half a token on a side."""
    seen = set()
    for seed in range(200):
        _, targets = multi_block_masks(numbers(1, seed), (32, 32))
        block = targets[0, 0].view(32, 32)
        rows, columns = block.any(1).sum().item(), block.any(0).sum().item()
        seen.add((rows, columns))
        assert 0.14 < rows * columns / 1024 < 0.21
        assert 0.75 * 0.94 < rows / columns < 1.5 * 1.06
    areas = [rows * columns for rows, columns in seen]
    shapes = [rows / columns for rows, columns in seen]
    assert min(areas) < 0.155 * 1024 < 0.195 * 1024 < max(areas)
    assert min(shapes) < 0.8 < 1.4 < max(shapes)
    assert abs(stats.spearmanr(areas, shapes).statistic) < 0.4  # in the authors' code they are one number


def test_masks_of_ranks_are_those_of_the_whole_batch():
    """Sizes and the number of context tokens are common to all ranks' images, as every rank draws them all."""
    hidden, targets = multi_block_masks(numbers(32, seed=8), (8, 8))
    again = multi_block_masks(numbers(32, seed=8), (8, 8))
    assert torch.equal(torch.cat([again.hidden[:16], again.hidden[16:]]), hidden)
    # positions are an image's own: cutting the batch changes only how many context tokens there are
    half = multi_block_masks(numbers(16, seed=8), (8, 8))
    assert torch.equal(half.targets, targets[:16])
    assert (~half.hidden & hidden[:16]).sum() == 16 * ((~half.hidden).sum(1)[0] - (~hidden).sum(1)[0])


def test_targets_that_cover_the_whole_context_are_laid_on_each_other():
    hidden, targets = multi_block_masks(numbers(16), (3, 3), targets=60)
    assert (targets == targets[:, :1]).all()
    assert not (~hidden[:, None] & targets).any()
    assert (~hidden).any(1).all()


def test_a_target_without_a_context_is_refused():
    with pytest.raises(ValueError, match="leave no context on a grid of 1×1"):
        multi_block_masks(numbers(4), (1, 1))
    with pytest.raises(ValueError, match="target_scale must be 0 < low <= high <= 1"):
        multi_block_masks(numbers(4), (8, 8), target_scale=(0.3, 0.2))


@pytest.mark.parametrize("count", [2, 16, 33, 256])
def test_exactly_half_of_the_crops_are_masked_and_ratios_are_spread_evenly(count):
    for seed in range(5):
        ratios = stratified_ratios(numbers(1, seed), count)
        masked = ratios[ratios > 0].sort().values
        assert len(masked) == round(count / 2)
        for position, ratio in enumerate(masked.tolist()):  # one in each interval
            assert 0.1 + 0.4 * position / len(masked) <= ratio <= 0.1 + 0.4 * (position + 1) / len(masked)


def test_stratified_ratios_are_shuffled_and_uniform():
    table = torch.stack([stratified_ratios(numbers(1, seed), 8) for seed in range(1000)])
    assert ((table > 0).double().mean(0) - 0.5).abs().max() < 4.5 * math.sqrt(0.25 / 1000)
    for column in table.T:
        assert stats.kstest((column[column > 0].numpy() - 0.1) / 0.4, "uniform").pvalue > 1e-4
    assert not torch.equal(table[0], table[1])


def test_mixed_ratios_mask_half_of_the_images_independently():
    ratios = mixed_ratios(numbers(20_000))
    masked = ratios[ratios > 0]
    assert abs(len(masked) / 20_000 - 0.5) < 4.5 * math.sqrt(0.25 / 20_000)
    assert stats.kstest((masked.numpy() - 0.1) / 0.4, "uniform").pvalue > 1e-3


def test_ratios_are_independent_of_the_blocks_of_the_same_row():
    """Whether an image is masked must not say where."""
    draw = numbers(4000)
    place = block_mask(draw, (4, 4), 1).double().argmax(1)
    chosen = mixed_ratios(draw) > 0
    table = [torch.bincount(place[side], minlength=16).tolist() for side in (chosen, ~chosen)]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_masks_and_indices_are_each_others_inverse():
    mask = random_mask(numbers(7), (5, 5), 0.7)
    kept = kept_index(mask)
    assert kept.shape == (7, 25 - masked_count(25, 0.7))
    assert (kept.diff(dim=1) > 0).all()
    assert not mask.gather(1, kept).any()
    assert torch.equal(mask_of(kept, 25), mask)
    assert torch.equal(mask_of(kept_index(~mask), 25), ~mask)
    assert kept_index(torch.ones(3, 4, dtype=torch.bool)).shape == (3, 0)
    uneven = torch.tensor([[True, False, False], [True, True, False]])
    with pytest.raises(ValueError, match="images keep 1 to 2 tokens"):
        kept_index(uneven)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: random_mask(numbers(1), (4, 4), 1.1), "ratio"),
        (lambda: block_mask(numbers(1), (4, 4), 17), "count must be from 0 to the 16"),
        (lambda: block_mask(numbers(1), (4, 4), -1), "count must be from 0 to the 16"),
        (lambda: block_mask(numbers(1), (4, 4), 4, aspect=0.0), "aspect"),
        (lambda: inverse_block_mask(numbers(1), (4, 4), -0.1), "ratio"),
        (lambda: stratified_ratios(numbers(1), 4, share=2.0), "share"),
        (lambda: mixed_ratios(numbers(1), low=-1.0), "low"),
    ],
)
def test_refuses_what_it_cannot_do(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_masked_places_are_those_of_the_mask_image_by_image() -> None:
    mask = torch.tensor([[False, True, True], [False, False, False], [True, False, False]])
    image, place = masked_places(mask)
    assert (image.tolist(), place.tolist()) == ([0, 0, 2], [1, 2, 0])
