"""STL-10: few labelled and many unlabelled photographs (Coates, Lee and Ng 2011)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import DataConfig, SourceSplits
from selfsup.data.location import data_root, from_torchvision, missing
from selfsup.data.resident import ResidentDataset
from selfsup.errors import UserError
from selfsup.registry import sources
from selfsup.settings import Sides

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIDE = 96


@dataclass
class STL10Config(DataConfig):
    """Settings of STL-10; ``root`` is the folder that holds ``stl10_binary``.

    Attributes:
        unlabelled: Pretrain on the unlabelled images too; they take 2.8 GB of memory.
    """

    small: ClassVar[bool] = True

    name: str = "stl10"
    image_size: Sides = SIDE
    unlabelled: bool = True
    mean: list[float] = field(default_factory=lambda: [0.4467, 0.4398, 0.4066])
    std: list[float] = field(default_factory=lambda: [0.2603, 0.2566, 0.2713])


@sources.register("stl10", STL10Config)
def stl10(config: STL10Config) -> SourceSplits:
    """Photographs of ten kinds of things, 96 px colour, 5,000 + 8,000 and 100,000 without labels."""
    folder = data_root(config) / "stl10_binary"
    if config.download and not (folder / "train_X.bin").is_file():
        from torchvision.datasets import STL10

        from_torchvision(config, STL10, split="test")
    if not (folder / "train_X.bin").is_file():
        raise missing(config)

    def split(name: str, image_files: list[str], label_file: str) -> ResidentDataset:
        images = _read_images([folder / file for file in image_files])
        labels = torch.full((len(images),), -1)
        known = _read_labels(folder / label_file)
        labels[: len(known)] = known
        return ResidentDataset(
            images,
            labels,
            config.facts(name, classes=CLASSES),
        )

    test = split("test", ["test_X.bin"], "test_y.bin")
    if not config.unlabelled:
        return SourceSplits(split("train", ["train_X.bin"], "train_y.bin"), test)
    pretrain = split("train+unlabelled", ["train_X.bin", "unlabeled_X.bin"], "train_y.bin")
    assert pretrain.labels is not None
    train = pretrain.subset(torch.arange(int((pretrain.labels >= 0).sum())))
    train.facts = config.facts("train", classes=CLASSES)
    return SourceSplits(train, test, pretrain)


def _read_images(paths: list[Path]) -> Tensor:
    """Read images stored plane by plane and column by column: uint8 ``[N,3,96,96]``."""
    stored = []
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing; complete the folder, or set data.unlabelled=false if it is that file.")
        if path.stat().st_size == 0 or path.stat().st_size % (3 * SIDE * SIDE):
            raise UserError(f"{path} is truncated: it does not hold a whole number of images; fetch it again.")
        stored.append(np.memmap(path, np.uint8, "c").reshape(-1, 3, SIDE, SIDE))
    # One tensor is filled piece by piece: the unlabelled images are too large to be held twice
    images = torch.empty(sum(map(len, stored)), 3, SIDE, SIDE, dtype=torch.uint8)
    done = 0
    with progress_bar(total=len(images), desc="reading stl10", unit="image", delay=2) as progress:
        for part in stored:
            for piece in torch.split(torch.from_numpy(part), 1000):
                images[done : done + len(piece)] = piece.mT
                done += len(piece)
                progress.update(len(piece))
    return images


def _read_labels(path: Path) -> Tensor:
    if not path.is_file():
        raise UserError(f"{path} is missing; set data.root to a complete folder.")
    return torch.from_numpy(np.fromfile(path, np.uint8)).long() - 1  # the files count from 1
