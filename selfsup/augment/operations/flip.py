"""A left-right mirror."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from selfsup.augment.base import Operation, operation


@operation("flip")
class Flip(Operation):
    """Mirror images left to right. Directly after the crop, it is part of the crop's matrices and costs nothing."""

    slots: ClassVar[tuple[int, ...]] = (30,)

    def apply(self, images: Tensor) -> Tensor:
        return images.flip(-1)

    def movement(self) -> Tensor:
        return torch.tensor([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
