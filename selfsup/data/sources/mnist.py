"""MNIST: handwritten digits (LeCun, Cortes and Burges 1998)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from selfsup.data.base import DataConfig, SourceSplits
from selfsup.data.idx import idx_splits
from selfsup.registry import sources
from selfsup.settings import Sides


@dataclass
class MNISTConfig(DataConfig):
    """Settings of MNIST."""

    small: ClassVar[bool] = True

    name: str = "mnist"
    image_size: Sides = 28
    mean: list[float] = field(default_factory=lambda: [0.1307])
    std: list[float] = field(default_factory=lambda: [0.3081])


@sources.register("mnist", MNISTConfig)
def mnist(config: MNISTConfig) -> SourceSplits:
    """Handwritten digits, 28 px grey, 60,000 + 10,000."""
    return idx_splits(config, "MNIST", tuple("0123456789"))
