"""The part of an image that evaluation sees: the central square, or the middle in the aspect of a rectangle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.ragged import Images, central_squares, covering, cut_centre, unpack
from selfsup.types import Size, height_width, size_words
from selfsup.unit_range import unit_range

#: How images are resized for evaluation, by ``F.interpolate``.
BILINEAR: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}


def crop_centre(images: Tensor, size: Size, resize: int | None = None, **how: Any) -> Tensor:
    """Resize the short side of images ``[B,C,H,W]`` to ``size``, or ``resize``, by ``F.interpolate``; cut the centre.

    With a rectangle the images are resized to cover it, or the larger one of its aspect with the short side ``resize``.

    Raises:
        UserError: ``resize`` is smaller than ``size``.
    """
    shape = (images.shape[-2], images.shape[-1])
    resized = covering(shape, height_width(enlarged(size, resize)))
    if resized != shape:
        images = F.interpolate(images, list(resized), **how)
    return cut_centre(images, height_width(size))


def enlarged(size: Size, resize: int | None) -> Size:
    """Return the size with the short side ``resize``, in the same aspect; None is the size itself.

    Raises:
        UserError: It is smaller.
    """
    sides = height_width(size)
    short = min(sides)
    if resize is None:
        return size
    if resize < short:
        raise UserError(
            f"eval.resize is {resize}, smaller than data.image_size={size_words(size)}; set it to {short} or more."
        )
    height, width = (round(side * resize / short) for side in sides)
    return resize if height == width else (height, width)


def centres_of(images: Images, size: Size, resize: int | None = None) -> Tensor:
    """Return the parts of images of any shapes that evaluation sees, in one tensor ``[n,C,h,w]``.

    Of a square size these are the central squares as they are stored. Of a rectangle each image is resized on its own
    to cover it, or the larger one of ``resize``, and what lies beyond is cut: float in [0, 1]. Images of one shape stay
    as they are.

    Raises:
        UserError: ``resize`` is smaller than ``size``.
    """
    if images.size is None or isinstance(size, int):
        return central_squares(images)
    whole = enlarged(size, resize)
    parts = [crop_centre(unit_range(image)[None], whole, **BILINEAR) for image in unpack(images)]
    return torch.cat(parts)
