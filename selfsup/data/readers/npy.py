"""Arrays of numpy: ``[H,W]``, and ``[C,H,W]`` or ``[H,W,C]``, whichever of the first and the last axis is shorter."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.lib import format as npy

from selfsup.data.form import Array, Kind, UndecodableError, depth_of
from selfsup.data.reader import Reader, Values, add, check_pixels

MAGIC = b"\x93NUMPY"
AXIS = "an array whose first and last axis are of one length: set data.channel_axis=first or last"


@add
class Npy(Reader):
    """``.npy`` files; objects in them are never executed."""

    name = "npy"
    endings = frozenset({".npy"})

    def takes(self, head: bytes) -> bool:
        return head.startswith(MAGIC)

    def kind(self, content: bytes, channel_axis: str | None) -> Kind:
        shape, dtype = _head(content)
        channels, height, width = arranged(shape, channel_axis)
        return Kind(channels, depth_of(dtype), shape=(height, width))

    def read(self, content: bytes, channel_axis: str | None, max_pixels: int) -> Values:
        shape, _ = _head(content)
        check_pixels(*arranged(shape, channel_axis)[1:], max_pixels)
        array: Array = np.load(io.BytesIO(content), allow_pickle=False)
        return Values(channels_first(array, channel_axis))


def arranged(shape: tuple[int, ...], channel_axis: str | None) -> tuple[int, int, int]:
    """Return channels, height and width of an array.

    Raises:
        UndecodableError: It has no two or three axes, is empty, or does not say which axis is that of the channels.
    """
    if len(shape) not in (2, 3) or 0 in shape:
        raise UndecodableError(f"its shape is {list(shape)}", "arrays that are not [H,W], [C,H,W] or [H,W,C]")
    if len(shape) == 2:
        return 1, *shape
    if channel_axis is None and shape[0] == shape[2]:
        raise UndecodableError(f"its shape is {list(shape)}", AXIS)
    return (shape[0], shape[1], shape[2]) if _first(shape, channel_axis) else (shape[2], shape[0], shape[1])


def channels_first(array: Array, channel_axis: str | None) -> Array:
    """Return an array as ``[C,H,W]``, in the byte order of the machine."""
    whole = array[None] if array.ndim == 2 else array
    if array.ndim == 3 and not _first(array.shape, channel_axis):
        whole = np.moveaxis(array, -1, 0)
    return np.ascontiguousarray(whole, dtype=array.dtype.newbyteorder("="))


def _first(shape: tuple[int, ...], channel_axis: str | None) -> bool:
    return shape[0] < shape[-1] if channel_axis is None else channel_axis == "first"


def _head(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind not in "buif":
        raise UndecodableError(f"its values are {dtype}", "arrays of something else than real numbers")
    return shape, dtype
