"""Maps between unit squares: closed forms here; through the real pipeline in tests/augment/test_to_source.py."""

import pytest
import torch

from selfsup.functional.geometry import compose, crop_to_source, location_grid, warp_to_source


def point(to_source, x, y):
    return (to_source @ torch.tensor([x, y, 1.0], dtype=to_source.dtype))[0].tolist()


def test_crop_maps_corners_to_corners():
    box = torch.tensor([[10, 30, 20, 40]])  # top, left, height, width of a 100 × 200 image
    plain = crop_to_source(box, torch.tensor([False]), 100, 200)
    assert point(plain, 0, 0) == pytest.approx([0.15, 0.1])
    assert point(plain, 1, 1) == pytest.approx([0.35, 0.3])
    flipped = crop_to_source(box, torch.tensor([True]), 100, 200)
    assert point(flipped, 0, 0) == pytest.approx([0.35, 0.1])
    assert point(flipped, 1, 0.5) == pytest.approx([0.15, 0.2])


def test_location_grid_of_the_whole_image_and_of_a_mirrored_quadrant():
    to_source = crop_to_source(torch.tensor([[0, 0, 8, 8], [4, 4, 4, 4]]), torch.tensor([False, True]), 8, 8)
    whole, quadrant = location_grid(to_source, 2)
    assert whole.tolist() == [[[0.25, 0.25], [0.75, 0.25]], [[0.25, 0.75], [0.75, 0.75]]]
    assert quadrant.tolist() == [[[0.875, 0.625], [0.625, 0.625]], [[0.875, 0.875], [0.625, 0.875]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_location_grid_is_the_map_applied_to_the_centres(dtype):
    to_source = torch.rand(3, 2, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    grid = location_grid(to_source, 5)
    assert grid.shape == (3, 5, 5, 2)
    assert grid.dtype == dtype
    for row in range(5):
        for column in range(5):
            centre = torch.tensor([(column + 0.5) / 5, (row + 0.5) / 5, 1], dtype=dtype)
            torch.testing.assert_close(grid[:, row, column], to_source @ centre)


def test_compose_applies_the_inner_map_first():
    generator = torch.Generator().manual_seed(1)
    outer, inner = torch.rand(2, 4, 2, 3, dtype=torch.float64, generator=generator)
    last = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(4, 1, 3)
    expected = torch.cat([outer, last], dim=1) @ torch.cat([inner, last], dim=1)
    torch.testing.assert_close(compose(outer, inner), expected[:, :2])


def test_warp_maps_pixel_centres_to_pixel_centres():
    # the target shows the source's pixel (x, y) at (2x + 1, y - 3)
    matrix = torch.tensor([[[2.0, 0, 1], [0, 1, -3], [0, 0, 1]]])
    to_source = warp_to_source(matrix, (10, 20), (30, 50))
    target = ((2 * 4 + 1 + 0.5) / 50, (7 - 3 + 0.5) / 30)
    assert point(to_source, *target) == pytest.approx([4.5 / 20, 7.5 / 10])
