"""Digits: the small handwritten digits that come with scikit-learn (Alpaydin and Kaynak 1998)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from selfsup.data.base import DataConfig, SourceSplits
from selfsup.data.resident import ResidentDataset
from selfsup.registry import sources
from selfsup.settings import Sides


@dataclass
class DigitsConfig(DataConfig):
    """Settings of the digits."""

    small: ClassVar[bool] = True

    name: str = "digits"
    image_size: Sides = 16
    mean: list[float] = field(default_factory=lambda: [0.3053])
    std: list[float] = field(default_factory=lambda: [0.3760])


@sources.register("digits", DigitsConfig)
def digits(config: DigitsConfig) -> SourceSplits:
    """Handwritten digits of scikit-learn, 8 px grey, 1,438 + 359, nothing to download."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    images = (torch.from_numpy(stored.images) * (255 / 16)).round().to(torch.uint8)[:, None]  # stored as 0 to 16
    labels = torch.from_numpy(stored.target).long()
    # The source has no split of its own; this one is part of its definition and follows no seed of the run
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    tested = len(images) // 5

    def split(name: str, rows: torch.Tensor) -> ResidentDataset:
        return ResidentDataset(
            images[rows],
            labels[rows],
            config.facts(name, channels=1, classes="0123456789"),
        )

    return SourceSplits(train=split("train", order[tested:]), test=split("test", order[:tested]))
