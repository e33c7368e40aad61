"""Fashion-MNIST: articles of clothing (Xiao, Rasul and Vollgraf 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from selfsup.data.base import DataConfig, SourceSplits
from selfsup.data.idx import idx_splits
from selfsup.registry import sources
from selfsup.settings import Sides

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist installs


@dataclass
class FashionMNISTConfig(DataConfig):
    """Settings of Fashion-MNIST."""

    small: ClassVar[bool] = True

    name: str = "fashion_mnist"
    image_size: Sides = 28
    mean: list[float] = field(default_factory=lambda: [0.2860])
    std: list[float] = field(default_factory=lambda: [0.3530])


@sources.register("fashion_mnist", FashionMNISTConfig)
def fashion_mnist(config: FashionMNISTConfig) -> SourceSplits:
    """Articles of clothing, 28 px grey, 60,000 + 10,000; also found where Debian's package puts it."""
    return idx_splits(config, "FashionMNIST", CLASSES, [DEBIAN_FOLDER])
