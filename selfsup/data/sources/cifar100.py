"""CIFAR-100: photographs of a hundred kinds of things (Krizhevsky 2009)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from selfsup.data.base import DataConfig, SourceSplits
from selfsup.data.sources.cifar10 import cifar_splits
from selfsup.registry import sources


@dataclass
class CIFAR100Config(DataConfig):
    """Settings of CIFAR-100; ``root`` is the folder that holds ``cifar-100-python``."""

    small: ClassVar[bool] = True

    name: str = "cifar100"
    mean: list[float] = field(default_factory=lambda: [0.5071, 0.4865, 0.4409])
    std: list[float] = field(default_factory=lambda: [0.2673, 0.2564, 0.2762])


@sources.register("cifar100", CIFAR100Config)
def cifar100(config: CIFAR100Config) -> SourceSplits:
    """Photographs of a hundred kinds of things, 32 px colour, 50,000 + 10,000."""
    from torchvision.datasets import CIFAR100

    return cifar_splits(config, CIFAR100)
