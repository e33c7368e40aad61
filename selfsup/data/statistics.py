"""Mean and standard deviation of each channel of a dataset, in one pass over its images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.data.form import WHITE
from selfsup.data.loader import eval_batches
from selfsup.errors import UserError

AT_ONCE = 64  # images in a batch


@dataclass(frozen=True)
class Statistics:
    """What was measured, of values scaled to [0, 1] as views have them.

    Attributes:
        mean, std: Of each channel over all pixels of all images; ``std`` divides by their number.
        least, most: The smallest and the largest value of each channel.
        images: How many images were read.
    """

    mean: list[float]
    std: list[float]
    least: list[float]
    most: list[float]
    images: int


def measure(dataset: ImageDataset, workers: int = 0, progress: bool = True) -> Statistics:
    """Measure the pixels of every image, as it is stored. Those that cannot be decoded are left out.

    Whole numbers are added up as such, without any rounding; floating-point values in float64.

    Args:
        dataset: Its images.
        workers: Processes that decode.
        progress: Show a bar.

    Raises:
        UserError: No image can be read.
    """
    sums: list[list[int | float]] = []
    squares: list[list[int | float]] = []
    ends: list[tuple[Tensor, Tensor]] = []
    count, images, white = 0, 0, 1
    with progress_bar(
        total=len(dataset), desc=f"statistics of {dataset.name}", unit="image", disable=not progress
    ) as bar:
        for batch in eval_batches(dataset, AT_ONCE, workers):
            white = WHITE[str(batch.image.dtype).removeprefix("torch.")]
            # of images that differ in shape the pixels are [C,P] already
            pixels = batch.image.transpose(0, 1).flatten(1) if batch.image.ndim == 4 else batch.image
            pixels = pixels.to(torch.float64 if pixels.is_floating_point() else torch.int64)
            sums.append(pixels.sum(1).tolist())
            squares.append(pixels.square().sum(1).tolist())
            ends.append((pixels.amin(1), pixels.amax(1)))
            count += pixels.shape[1]
            images += len(batch.index)
            bar.update(len(batch.index))
    if not images:
        raise UserError(f"data: the {dataset.split} split of '{dataset.name}' has no image that can be read.")
    first = [_total(values) for values in zip(*sums, strict=True)]
    second = [_total(values) for values in zip(*squares, strict=True)]
    return Statistics(
        [total / count / white for total in first],
        [_deviation(a, b, count) / white for a, b in zip(first, second, strict=True)],
        (torch.stack([low for low, _ in ends]).amin(0).double() / white).tolist(),
        (torch.stack([high for _, high in ends]).amax(0).double() / white).tolist(),
        images,
    )


def _total(values: tuple[int | float, ...]) -> int | float:
    return sum(values) if isinstance(values[0], int) else math.fsum(values)


def _deviation(total: int | float, squares: int | float, count: int) -> float:
    if isinstance(total, int) and isinstance(squares, int):  # without cancellation
        return math.sqrt(count * squares - total * total) / count
    return math.sqrt(max(0.0, squares / count - (total / count) ** 2))
