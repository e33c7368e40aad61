"""Bright values inverted."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from selfsup.augment.base import Operation, operation
from selfsup.settings import setting


@operation("solarize")
class Solarize(Operation):
    """Invert the values at or above ``threshold``."""

    slots: ClassVar[tuple[int, ...]] = (35,)

    p: float = 0.0
    threshold: float = setting(0.5, least=0, most=1)

    def apply(self, images: Tensor) -> Tensor:
        return torch.where(images >= self.threshold, 1 - images, images)
