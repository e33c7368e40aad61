"""How many channels and how many bits images have, and how other images are brought to that without loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

#: Types that pixels are kept in, from the shallowest, and the value of each that is white; black is 0.
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}
DEPTHS = tuple(WHITE)
ON_ITS_SIDE = 5  # the first of EXIF's numbers of how an image is turned that exchanges its sides
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue in grey, as Pillow has it (ITU-R 601)
NO_RANGE = "floating-point images have no known range and hold values outside [0, 1]: set data.value_range=[low,high]"
NO_RANGE_OF_INTEGERS = (
    "whole numbers with a sign or of more than 16 bits have no known range: set data.value_range=[low,high]"
)


class UndecodableError(Exception):
    """A file that is no image, is damaged, is too large, or is not of the form of the others.

    Args:
        message: What is wrong with which file.
        reason: The same without what is particular to the file, to count by; None is the message.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


class Kind(NamedTuple):
    """What the head of a file says.

    Attributes:
        channels: Of each image.
        depth: The type that keeps its values, one of ``DEPTHS``.
        photograph: Whether it is grey or colour of 8 bits, which is read as three channels unless another number is
            asked for.
        shape: Height and width; None where Pillow says them.
    """

    channels: int
    depth: str
    photograph: bool = False
    shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Form:
    """What all images of a source are read as.

    Attributes:
        channels: Their number.
        depth: The type of the values, one of ``DEPTHS``.
        lowers: Whether deeper values are lowered to it, because ``data.depth`` asks for it.
        value_range: The values that become black and white, of floating-point images and of whole numbers with more
            than 8 bits; None: they have their type's range, floating-point ones [0, 1].
        channel_axis: Which axis of an array ``[a,b,c]`` is that of the channels, ``first`` or ``last``; None is the
            shorter one.
    """

    channels: int = 3
    depth: str = "uint8"
    lowers: bool = False
    value_range: tuple[float, float] | None = None
    channel_axis: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        return {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}[self.depth]

    @property
    def bytes_a_value(self) -> int:
        return self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.channels} channel{'s' * (self.channels != 1)} of {self.depth}"


#: How images of 8 bits, grey or colour, are read where nothing else is asked for.
PHOTOGRAPHS = Form()


def depth_of(dtype: np.dtype[Any]) -> str:
    """Return the type that keeps values of a type of numpy's, as far as 24 bits go."""
    if dtype == np.bool_ or dtype == np.uint8:
        return "uint8"
    return "uint16" if dtype == np.uint16 else "float32"


def bring(array: Array, form: Form, own_range: Sequence[float] | None = None) -> Tensor:
    """Return an image ``[C,H,W]`` as a form has it.

    Values keep their order and, where the form is as deep as they are, differ where they differed: 8 bits become 16 by
    the factor 257, so that white stays white.

    Args:
        array: Of any type of numbers.
        form: What it becomes.
        own_range: What the file says is black and white, in this order; ``form.value_range`` goes before it.

    Raises:
        UndecodableError: Another number of channels, deeper values, or values without a range.
    """
    given = form.value_range or own_range
    if form.value_range and own_range and own_range[0] > own_range[1]:  # the file is a negative
        given = form.value_range[::-1]
    return with_channels(torch.from_numpy(_levels(array, form, given)), form.channels)


def _levels(array: Array, form: Form, given: Sequence[float] | None) -> Array:
    top = WHITE[form.depth]
    to: Any = np.dtype(form.depth)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    kept = depth_of(array.dtype)
    if DEPTHS.index(kept) > DEPTHS.index(form.depth) and not form.lowers:
        raise UndecodableError(
            f"its values are {array.dtype}",
            f"{kept} values where the others have {form.depth}: set data.depth={kept}, or {form.depth} to lower them",
        )
    if array.dtype == np.uint8:
        return (
            array
            if form.depth == "uint8"
            else (array * to.type(257) if form.depth == "uint16" else array / to.type(255))
        )
    if given is not None:
        low, high = given
        scaled = np.nan_to_num((array.astype(np.float64) - low) * (top / (high - low)), nan=0.0).clip(0, top)
        return (scaled if form.depth == "float32" else scaled.round()).astype(to)
    if array.dtype == np.uint16:
        if form.depth == "uint8":
            return (array // 256).astype(to)
        return array if form.depth == "uint16" else (array / np.float32(WHITE["uint16"])).astype(to)
    if array.dtype.kind != "f":
        raise UndecodableError(NO_RANGE_OF_INTEGERS)
    if not (array.min() >= 0 and array.max() <= 1):  # false for NaN, too
        raise UndecodableError(NO_RANGE)
    return array.astype(to) if form.depth == "float32" else (array * top).round().astype(to)


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Return an image ``[C,H,W]`` with so many channels: grey is repeated for three, colour becomes grey for one.

    Raises:
        UndecodableError: Neither of the two.
    """
    have = len(image)
    if have == channels:
        return image
    if have == 1 and channels == 3:
        return image.expand(3, -1, -1)
    if have == 3 and channels == 1:
        weights = torch.tensor(LUMINANCE, dtype=torch.float64).view(3, 1, 1)
        grey = (image.to(torch.float64) * weights).sum(0, keepdim=True)
        return (grey if image.is_floating_point() else grey.round()).to(image.dtype)
    reason = (
        f"{have} channel{'s' * (have != 1)} where {channels} {'is' if channels == 1 else 'are'} read: data.channels"
    )
    raise UndecodableError(f"it has {have} channels", reason)
