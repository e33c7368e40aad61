"""Linear maps along rows and columns of a batch of images, such as a resize or a blur, as matrix products."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TILE = 16  # neighbouring results that share a window
WORTH = 4  # times that a window must fit into the axis, or gathering takes as long as it saves
VALUES_AT_A_TIME = 2**17  # numbers of source images that are worked on at a time on a CPU: half a MiB


class Resampling(NamedTuple):
    """What each result along an axis is made of; each tile of ``t`` neighbouring ones sees a window of ``s`` pixels.

    Attributes:
        weights: ``[B,T,t,s]``.
        start: int64 ``[B,T]``, the first pixel of each window; None where the one window is the whole axis.
        size: Number of results, at most ``T t``; those beyond it mean nothing.
    """

    weights: Tensor
    start: Tensor | None
    size: int


def resampling(pixel: Tensor, weight: Tensor, source: int, reach: int) -> Resampling:
    """Return the map with the given weights.

    Windows are for CPUs, where most of a product with a whole matrix would be zeros; a GPU has it done before it has
    gathered the windows.

    Args:
        pixel: int64 ``[B,target,taps]``, the pixels that each result is made of.
        weight: ``[B,target,taps]``; weights of one pixel add up.
        source: Number of pixels.
        reach: Most pixels from the first to the last that ``TILE`` neighbouring results are made of.
    """
    count, target, _ = weight.shape
    if weight.device.type != "cpu" or WORTH * reach > source:
        return Resampling(
            weight.new_zeros(count, 1, target, source).scatter_add_(3, pixel[:, None], weight[:, None]), None, target
        )
    order = torch.arange(-(-target // TILE) * TILE).clamp_(max=target - 1)
    pixel, weight = (torch.unflatten(values[:, order], 1, (-1, TILE)) for values in (pixel, weight))
    start = pixel.amin((2, 3)).clamp_(max=source - reach)
    weights = weight.new_zeros(*weight.shape[:3], reach).scatter_add_(3, pixel - start[:, :, None, None], weight)
    return Resampling(weights, start, target)


def apply_separable(images: Tensor, rows: Resampling, columns: Resampling) -> Tensor:
    """Return images resampled along both axes: ``[B,C,H,W]`` to ``[B,C,rows.size,columns.size]``.

    On CUDA the products follow the process's TF32 setting.
    """
    result = images.new_empty(*images.shape[:2], rows.size, columns.size)
    # on a CPU so many at a time that what lies between stays in the cache
    count = VALUES_AT_A_TIME // max(1, images.shape[1:].numel()) if images.device.type == "cpu" else len(images)
    for first in range(0, len(images), max(1, count)):
        some = slice(first, first + max(1, count))
        _resample(images[some], _of(rows, some), _of(columns, some), result[some])
    return result


def _of(whole: Resampling, some: slice) -> Resampling:
    return Resampling(whole.weights[some], None if whole.start is None else whole.start[some], whole.size)


def _resample(images: Tensor, rows: Resampling, columns: Resampling, result: Tensor) -> None:
    if rows.start is None and columns.start is None:
        down, across = rows.weights[:, 0], columns.weights[:, 0]
        wide = torch.bmm(images.flatten(1, 2), across.transpose(1, 2)).view(*images.shape[:3], columns.size)
        # one product a channel: a broadcast product would copy the matrices for every channel first
        torch.stack([torch.bmm(down, channel) for channel in wide.unbind(1)], dim=1, out=result)
    else:
        tall = _along(images.flatten(0, 1), rows, images.shape[1])
        result.copy_(_along(tall, columns, images.shape[1]).view_as(result))


def _along(planes: Tensor, axis: Resampling, channels: int) -> Tensor:
    """Resample the first axis of planes and exchange the two, so that windows are whole rows of memory both times.

    Args:
        planes: ``[B · channels,S,K]``.
        axis: Of ``B`` images.
        channels: Planes of an image.

    Returns:
        ``[B · channels,K,size]``.
    """
    count, length, width = planes.shape
    tiles, tile, span = axis.weights.shape[1:]
    weights = axis.weights.repeat_interleave(channels, 0).flatten(0, 1)
    windows = planes
    if axis.start is not None:
        first = axis.start.repeat_interleave(channels, 0) + torch.arange(0, count * length, length)[:, None]
        row = (first[:, :, None] + torch.arange(span)).flatten()
        windows = planes.reshape(-1, width).index_select(0, row).view(-1, span, width)
    made = torch.bmm(windows.transpose(1, 2), weights.transpose(1, 2)).view(count, tiles, width, tile)
    return made.transpose(1, 2).reshape(count, width, tiles * tile)[:, :, : axis.size]
