"""Maps along rows and columns, in windows or whole, against sums pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfsup.augment.crop import Crop
from selfsup.augment.operations.blur import gaussian_blur
from selfsup.augment.resampling import TILE, WORTH, apply_separable, resampling


def drawn(target: int, source: int, taps: int, step: float) -> tuple[Tensor, Tensor]:
    """Return pixels that go along the axis by ``step``, forwards in one image and backwards in the other; weights."""
    first = (torch.arange(target) * step).long().clamp(max=source - taps)
    pixel = torch.stack([first, first.flip(0)])[:, :, None] + torch.arange(taps)
    return pixel, torch.randn(2, target, taps, dtype=torch.float64)


def dense(pixel: Tensor, weight: Tensor, source: int) -> Tensor:
    matrix = torch.zeros(*weight.shape[:2], source, dtype=torch.float64)
    for image, result, tap in torch.cartesian_prod(*map(torch.arange, weight.shape)).tolist():
        matrix[image, result, pixel[image, result, tap]] += weight[image, result, tap]
    return matrix


def reach_of(pixel: Tensor) -> int:
    runs = [pixel[:, first : first + TILE] for first in range(0, pixel.shape[1], TILE)]
    return max(int(run.amax() - run.amin()) + 1 for each in runs for run in each)


@pytest.mark.parametrize("height", [(40, 200, 3, 4.9), (33, 150, 2, 0.7), (7, 9, 2, 1.0)])
@pytest.mark.parametrize("width", [(48, 160, 3, 1.1), (5, 6, 3, 1.0)])
@pytest.mark.parametrize("values", [1, 2**17])
def test_windows_give_what_whole_matrices_do(
    height: tuple[int, int, int, float],
    width: tuple[int, int, int, float],
    values: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("selfsup.augment.resampling.VALUES_AT_A_TIME", values)  # one image at a time, or all
    torch.manual_seed(0)
    rows, columns = drawn(*height), drawn(*width)
    images = torch.randn(2, 3, height[1], width[1], dtype=torch.float64)
    wanted = torch.einsum("nhH,ncHW,nwW->nchw", dense(*rows, height[1]), images, dense(*columns, width[1]))
    maps = [resampling(*axis, side, reach_of(axis[0])) for axis, side in ((rows, height[1]), (columns, width[1]))]
    for made, (pixel, _), side in zip(maps, (rows, columns), (height[1], width[1]), strict=True):
        assert (made.start is None) == (WORTH * reach_of(pixel) > side)
    torch.testing.assert_close(apply_separable(images, *maps), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(224, 224), (200, 130)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("source", [(256, 256), (500, 333), (130, 230)])
def test_crops_and_blurs_reach_no_farther_than_their_windows(
    size: tuple[int, int], interpolation: str, source: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    images = torch.rand(12, 3, *source)
    crop = Crop(scale=(0.05, 1.0), interpolation=interpolation)
    box = crop.boxes(torch.rand(12, 22, dtype=torch.float64), *source)
    box[0] = torch.tensor([0, 0, *source])
    flip, sigma = torch.arange(12) % 2 == 0, torch.linspace(0.1, 2.0, 12)
    found = []
    for worth in (1, 10**6):
        monkeypatch.setattr("selfsup.augment.resampling.WORTH", worth)
        view = crop.apply(images, box, flip, size)
        found.append((view, gaussian_blur(view, sigma, 23)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
