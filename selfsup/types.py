"""The values that travel between the parts: batches, views and what a step returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

#: Side of squares in pixels, or height and width of rectangles.
Size = int | tuple[int, int]


def as_size(sides: int | Sequence[int]) -> Size:
    """Return a size from a setting: one side, or height and width, of which two equal ones are a square."""
    height, width = height_width(sides)
    return height if height == width else (height, width)


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def size_words(size: int | Sequence[int]) -> str:
    """Return a size as messages have it: ``224``, or ``128×256`` of 128 rows and 256 columns."""
    return "×".join(str(side) for side in dict.fromkeys(height_width(size)))


@dataclass
class Batch:
    """Images as they leave the loader.

    Attributes:
        image: uint8 ``[B,C,H,W]``; or ``[C,P]``, the pixels of one image after those of the other, where they are
            no squares of one size (``selfsup.ragged``).
        label: int64 ``[B]``, or None when the source has no labels. A missing label is -1.
        index: int64 ``[B]``, the stable position of each image in its source split.
        size: int64 ``[B,2]`` on the CPU, height and width of each image ``[C,P]``; None of ``[B,C,H,W]``.
    """

    image: Tensor
    label: Tensor | None
    index: Tensor
    size: Tensor | None = None


@dataclass(frozen=True)
class View:
    """One augmented view of every image of a batch.

    Attributes:
        image: float ``[B,C,h,w]``, normalised.
        to_source: float ``[B,2,3]``. The affine map that takes a point (x, y) of the view to the point of the source
            image it shows. Both live in the unit square with (0, 0) at the outer corner of the first pixel and
            (1, 1) at the outer corner of the last (pixel-edge convention). Crop and flip are in the one map.
    """

    image: Tensor
    to_source: Tensor


@dataclass
class StepOutput:
    """What a method's step returns: the scalar to minimise, and scalars to log (detached by the caller)."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of images scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


#: ImageNet's statistics for grey images: the mean over the channels.
GREY = Normalization((0.449,), (0.226,))


@dataclass(frozen=True)
class ImageFacts:
    """What is known of the images of a dataset without looking at them, and all that building a network needs of them.

    Attributes:
        name, split: Where the images come from, for protocols and messages.
        channels: 1 or 3.
        image_size: What evaluation resizes to: a side, or height and width.
        normalization: Statistics of the images.
        classes: Names of the classes, or None when there are no labels.
    """

    name: str
    split: str
    channels: int
    image_size: Size
    normalization: Normalization
    classes: tuple[str, ...] | None = None
