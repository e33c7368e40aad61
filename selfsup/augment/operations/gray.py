"""Grey images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from selfsup.augment.base import Operation, Planes, operation


def luminance(planes: Sequence[Tensor]) -> Tensor:
    """Return the grey value of pixels given by channel; Kornia's weight of red is 0.299.

    Of other channels than three it is their mean.
    """
    if len(planes) == 1:
        return planes[0]
    if len(planes) != 3:
        return torch.stack(list(planes)).mean(0)
    red, green, blue = planes
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


@operation("gray")
class Gray(Operation):
    """Replace every channel by the luminance; images of other channels than three stay as they are."""

    needs_color: ClassVar[bool] = True
    slots: ClassVar[tuple[int, ...]] = (32,)

    p: float = 0.2

    def apply(self, images: Tensor) -> Tensor:
        return luminance(images.unbind(1))[:, None].expand_as(images)

    @staticmethod
    def on_planes(planes: Planes, argument: Tensor) -> Planes:
        gray = luminance(planes)
        return tuple(torch.where(argument[:, None, None], gray, plane) for plane in planes)
