"""CIFAR-10: photographs of ten kinds of things (Krizhevsky 2009)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from selfsup.data.base import DataConfig, SourceSplits
from selfsup.data.location import data_root, from_torchvision
from selfsup.data.resident import ResidentDataset
from selfsup.errors import UserError
from selfsup.registry import sources


@dataclass
class CIFAR10Config(DataConfig):
    """Settings of CIFAR-10; ``root`` is the folder that holds ``cifar-10-batches-py``."""

    small: ClassVar[bool] = True

    name: str = "cifar10"
    mean: list[float] = field(default_factory=lambda: [0.4914, 0.4822, 0.4465])
    std: list[float] = field(default_factory=lambda: [0.2470, 0.2435, 0.2616])


@sources.register("cifar10", CIFAR10Config)
def cifar10(config: CIFAR10Config) -> SourceSplits:
    """Photographs of ten kinds of things, 32 px colour, 50,000 + 10,000."""
    from torchvision.datasets import CIFAR10

    return cifar_splits(config, CIFAR10)


def cifar_splits(config: DataConfig, build: Callable[..., Any]) -> SourceSplits:
    """Load the two splits of CIFAR-10 or CIFAR-100 through torchvision, which checks the files' checksums.

    Raises:
        UserError: It is not there, or is a folder of image files.
    """
    folder = data_root(config)
    if (folder / "train").is_dir() and not config.download:
        raise UserError(
            f"data.root: {folder} holds {config.name} as files in train/CLASS/, which data=image_folder "
            "data.image_size=32 reads; encoded as JPEG they are other pixels than the original ones, so call it a copy."
        )

    def split(name: str, train: bool) -> ResidentDataset:
        source = from_torchvision(config, build, train=train)
        return ResidentDataset(
            torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(source.targets),
            config.facts(name, classes=source.classes),
        )

    return SourceSplits(train=split("train", True), test=split("test", False))
