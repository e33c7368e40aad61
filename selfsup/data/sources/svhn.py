"""SVHN: house numbers seen from the street (Netzer and others 2011)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from selfsup.data.base import DataConfig, SourceSplits
from selfsup.data.location import from_torchvision
from selfsup.data.resident import ResidentDataset
from selfsup.registry import sources


@dataclass
class SVHNConfig(DataConfig):
    """Settings of SVHN; ``root`` is the folder that holds ``train_32x32.mat`` and ``test_32x32.mat``."""

    small: ClassVar[bool] = True

    name: str = "svhn"
    mean: list[float] = field(default_factory=lambda: [0.4377, 0.4438, 0.4728])
    std: list[float] = field(default_factory=lambda: [0.1980, 0.2010, 0.1970])


@sources.register("svhn", SVHNConfig)
def svhn(config: SVHNConfig) -> SourceSplits:
    """House numbers, 32 px colour, 73,257 + 26,032."""
    from torchvision.datasets import SVHN

    def split(name: str) -> ResidentDataset:
        source = from_torchvision(config, SVHN, split=name)
        return ResidentDataset(
            torch.from_numpy(source.data).contiguous(),
            torch.from_numpy(source.labels).long(),
            config.facts(name, classes="0123456789"),
        )

    return SourceSplits(train=split("train"), test=split("test"))
