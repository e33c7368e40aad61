"""Images of different shapes in one tensor: the pixels of one image after those of the other, and the size of each.

Squares of one size are a plain ``[n,C,S,S]``, and their size is None. Of others the pixels are ``[C,P]`` with ``P`` the
pixels of all images, and the sizes int64 ``[n,2]``, height and width, on the CPU. Nothing is padded: a panorama in a
batch makes no other image larger, and whoever expects ``[n,C,H,W]`` is stopped by the shape. What is done to an image
does not depend on the shapes of the others, as oblong images are ``[C,P]`` even where all have one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from selfsup.types import Size


class Images(NamedTuple):
    """Images in one tensor.

    Attributes:
        pixels: ``[n,C,H,W]``, or ``[C,P]`` where they are no squares of one size.
        size: None, or int64 ``[n,2]`` on the CPU: height and width of each.
    """

    pixels: Tensor
    size: Tensor | None = None


def pack(images: Sequence[Tensor]) -> Images:
    """Put images ``[C,h,w]``, of which there is at least one, into one tensor."""
    shapes = {image.shape for image in images}
    if len(shapes) == 1 and images[0].shape[-1] == images[0].shape[-2]:
        return Images(torch.stack(list(images)))
    size = torch.tensor([image.shape[-2:] for image in images])
    return Images(torch.cat([image.flatten(1) for image in images], dim=1), size)


def unpack(images: Images) -> list[Tensor]:
    """Return each image ``[C,h,w]``, a view of its pixels."""
    pixels, size = images
    if size is None:
        return list(pixels)
    found, begin = [], 0
    for height, width in size.tolist():
        found.append(pixels[:, begin : begin + height * width].view(len(pixels), height, width))
        begin += height * width
    return found


def cut(images: Images, box: Tensor) -> Tensor:
    """Return a box of each image, in the upper left corner of a square of zeros as large as the largest box.

    Args:
        images: ``n`` images of any shapes.
        box: int64 ``[k n,4]`` on the CPU: top, left, height and width in pixels, of all images ``k`` times over.

    Returns:
        ``[k n,C,h,w]`` with the height of the highest box and the width of the widest.
    """
    whole, boxes = unpack(images), box.tolist()
    height, width = (int(side) for side in box[:, 2:].amax(0))
    found = whole[0].new_zeros(len(boxes), len(whole[0]), height, width)
    for place, (top, left, high, wide) in enumerate(boxes):
        found[place, :, :high, :wide] = whole[place % len(whole)][:, top : top + high, left : left + wide]
    return found


def central_squares(images: Images) -> Tensor:
    """Return the middle square of each image, ``[n,C,S,S]``; what is ``[n,C,H,W]`` stays as it is.

    Raises:
        ValueError: The shorter sides are not all of one length.
    """
    if images.size is None:
        return images.pixels
    whole = unpack(images)
    sides = {min(image.shape[-2:]) for image in whole}
    if len(sides) != 1:
        raise ValueError(f"the shorter sides of these images are {sorted(sides)}, and squares of one size are needed")
    return torch.stack([central_square(image) for image in whole])


def central_parts(images: Images, size: Size) -> Tensor:
    """Return the middle of each image, in the aspect that evaluation sees; what is ``[n,C,H,W]`` stays as it is.

    Of a square size these are the middle squares. Of a rectangle the largest parts of its aspect, brought to one shape,
    whose longer side is the shorter one of the first image.
    """
    if images.size is None or isinstance(size, int):
        return central_squares(images)
    shorter = int(images.size[0].min())
    target = (max(1, round(size[0] * shorter / max(size))), max(1, round(size[1] * shorter / max(size))))
    parts = []
    for image in unpack(images):
        shape = covering((image.shape[-2], image.shape[-1]), target)
        resized = interpolate(image[None].float(), shape, mode="bilinear", antialias=True)[0]
        part = cut_centre(resized, target)
        parts.append(part if image.is_floating_point() else part.round().to(image.dtype))
    return torch.stack(parts)


def covering(shape: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return what an image is resized to, its aspect kept, so that it just covers ``target``; heights and widths."""
    (height, width), (high, wide) = shape, target
    if high * width >= wide * height:
        return high, width * high // height
    return height * wide // width, wide


def cut_centre(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the middle of images ``[…,H,W]``, as torchvision's ``CenterCrop`` rounds."""
    top, left = (round((side - part) / 2) for side, part in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def central_part(image: Tensor, size: Size) -> Tensor:
    """Return the largest middle part of images ``[…,H,W]`` that has the aspect of a size, to the nearest pixel."""
    if isinstance(size, int):
        return central_square(image)
    height, width = image.shape[-2:]
    high = min(height, max(1, round(width * size[0] / size[1])))
    wide = min(width, max(1, round(height * size[1] / size[0])))
    return cut_centre(image, (high, wide))


def central_square(image: Tensor) -> Tensor:
    """Return the middle square of images ``[…,H,W]``."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]
