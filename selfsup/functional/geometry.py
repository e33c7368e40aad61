"""Where the points of a view lie in its source image.

Every map is an affine ``[B,2,3]`` between unit squares in the pixel-edge convention: (0, 0) is the outer corner of the
first pixel and (1, 1) the outer corner of the last, so a map does not change with the resolution of either image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selfsup.functional.arguments import count, floats


def crop_to_source(box: Tensor, flip: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Return the map of a resized crop that may be mirrored left to right.

    Args:
        box: ``[B,4]``: top, left, height and width of the crop in pixels of the source.
        flip: bool ``[B]``: mirrored after the crop.
        height, width: Size of the source in pixels: of all, or ``[B]``.

    Returns:
        float32 ``[B,2,3]``, view to source.
    """
    top, left, box_height, box_width = box.double().unbind(1)
    to_source = torch.zeros(len(box), 2, 3, dtype=torch.float64, device=box.device)
    to_source[:, 0, 0] = torch.where(flip, -box_width, box_width) / width
    to_source[:, 0, 2] = torch.where(flip, left + box_width, left) / width
    to_source[:, 1, 1] = box_height / height
    to_source[:, 1, 2] = top / height
    return to_source.float()


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the map that applies ``inner`` and then ``outer``, both ``[B,2,3]``."""
    linear = outer[:, :, :2] @ inner[:, :, :2]
    offset = outer[:, :, :2] @ inner[:, :, 2:] + outer[:, :, 2:]
    return torch.cat([linear, offset], dim=2)


def warp_to_source(matrix: Tensor, source_size: tuple[int, int], target_size: tuple[int, int]) -> Tensor:
    """Return the map of a warp that is given by its forward pixel matrix.

    Args:
        matrix: ``[B,3,3]``, affine: takes a point (x, y) of the source to the point of the target, both in pixels with
            (0, 0) at the **centre** of the first pixel (Kornia's ``transform_matrix``).
        source_size, target_size: (height, width) in pixels.

    Returns:
        ``[B,2,3]`` of the type of ``matrix``: target to source, unit squares.
    """
    inverse = torch.linalg.inv(matrix)
    to_pixels = inverse.new_tensor([[target_size[1], 0, -0.5], [0, target_size[0], -0.5], [0, 0, 1]])
    to_unit = inverse.new_tensor(
        [[1 / source_size[1], 0, 0.5 / source_size[1]], [0, 1 / source_size[0], 0.5 / source_size[0]]]
    )
    to_source: Tensor = to_unit @ inverse @ to_pixels
    return to_source


def location_grid(to_source: Tensor, size: int) -> Tensor:
    """Return the centres (x, y), in the source image, of a ``size`` × ``size`` grid of cells laid over each view.

    Args:
        to_source: ``[B,2,3]``, see ``View``.
        size: Cells along a side.

    Returns:
        ``[B,size,size,2]``, rows first, in units of the source's sides. A map of NaN, which stands for none, gives NaN.

    Raises:
        ValueError: Another shape, an infinite map, or no cells.
    """
    floats("location_grid", "[B?,2,3]", nan=True, to_source=to_source)
    count("location_grid", size=size)
    centre = (torch.arange(size, device=to_source.device, dtype=to_source.dtype) + 0.5) / size
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    return torch.einsum("bij,hwj->bhwi", to_source, points)
