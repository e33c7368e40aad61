"""Regions of an image, and their order."""

import pytest
import torch

from selfsup.functional.regions import graph_segments, region_order, widened


def blocks():
    """Four flat blocks of 6 × 6."""
    values = torch.tensor([[0.1, 0.4], [0.7, 1.0]])
    return values.repeat_interleave(6, 0).repeat_interleave(6, 1)[None].repeat(3, 1, 1)


def test_flat_blocks_are_the_segments():
    found = graph_segments(blocks(), scale=10, sigma=0, smallest=4)
    assert found.dtype == torch.int64
    assert sorted(found.unique().tolist()) == [0, 1, 2, 3]
    for y in range(2):
        for x in range(2):
            assert len(found[6 * y : 6 * y + 6, 6 * x : 6 * x + 6].unique()) == 1


def test_a_large_scale_or_least_size_joins_everything():
    # √3 · 0.3 between neighbours of 36 pixels: joined from a scale of 255 · 36 · √3 · 0.3 on
    edge = 255 * 36 * 3**0.5 * 0.3
    assert len(graph_segments(blocks(), 1.02 * edge, 0, 1).unique()) < 4
    assert len(graph_segments(blocks(), 0.98 * edge, 0, 1).unique()) == 4
    assert len(graph_segments(blocks(), 10, 0, 37).unique()) < 4
    assert len(graph_segments(blocks(), 1e9, 0, 1).unique()) == 1
    noisy = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    found = graph_segments(noisy, 20, 0.8, 25)
    assert found.shape == (20, 30)
    assert torch.bincount(found.flatten()).min() >= 25


def test_segments_are_those_of_scikit_learns_graph():
    """With scale 0 only equal neighbours join: connected components of equal colour."""
    from scipy.ndimage import label

    image = torch.randint(0, 2, (1, 9, 11), generator=torch.Generator().manual_seed(3)).float()
    found = graph_segments(image, 0, 0, 1)
    for value in (0, 1):
        parts, count = label((image[0] == value).numpy(), structure=torch.ones(3, 3).numpy())
        own = found[image[0] == value]
        assert len(own.unique()) == count
        for part in range(1, count + 1):
            assert len(found[torch.from_numpy(parts == part)].unique()) == 1


def test_discs_and_refusals():
    point = torch.zeros(1, 9, 9, dtype=torch.bool)
    point[0, 4, 4] = True
    y, x = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    for radius in (0, 1, 3):
        assert torch.equal(widened(point, radius)[0], (y - 4) ** 2 + (x - 4) ** 2 <= radius**2)
    with pytest.raises(ValueError, match="masks must be bool"):
        widened(point.float(), 1)
    with pytest.raises(ValueError, match="masks must be bool"):
        region_order(torch.rand(4, 4), point, 1)


def test_order_is_that_of_the_mean_of_what_is_new():
    attribution = torch.tensor([[3.0, 3.0, 1.0, 1.0], [0.0, 0.0, 5.0, 0.5]])
    masks = torch.zeros(4, 2, 4, dtype=torch.bool)
    masks[0, 0, :2] = True  # mean 3
    masks[1, 0] = True  # mean 2, then, of the new ones, 1
    masks[2, 1, 2:] = True  # mean 2.75
    masks[3, 1, 2] = True  # mean 5, a single pixel
    expected = torch.tensor([[8.0, 8.0, 4.0, 4.0], [2.0, 2.0, 6.0, 6.0]]) / 8
    torch.testing.assert_close(region_order(attribution, masks, 2), expected)
    # a single new pixel is enough now: it comes first, and the region around it adds what is left, at 0.5
    expected = torch.tensor([[7.0, 7.0, 5.0, 5.0], [2.0, 2.0, 8.0, 3.0]]) / 8
    torch.testing.assert_close(region_order(attribution, masks, 1), expected)


def test_the_planted_block_comes_first():
    image = blocks()
    segments = graph_segments(image, 10, 0, 4)
    masks = torch.stack([segments == s for s in segments.unique()])
    attribution = torch.rand(12, 12, generator=torch.Generator().manual_seed(0))
    attribution[6:, :6] += 1
    order = region_order(attribution, masks, 5)
    assert (order[6:, :6] == 1).all()
    assert (order == 1).sum() == 36
    assert sorted(order.unique().tolist()) == [0.25, 0.5, 0.75, 1.0]
