"""Folders of small noisy JPEGs laid out as the photographs that benchmarks read: for rehearsals and tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.io import write_jpeg, write_png

from selfsup.data.sources.imagenette import CLASSES


def write_images(root: Path, name: str, train: int = 15, test: int = 3, size: tuple[int, int] = (32, 32)) -> None:
    """Write ``NAME/train/CLASS/`` and ``NAME/test/CLASS/`` (``val`` for imagenette), each class of its own brightness.

    Args:
        root: Folder of all.
        name: ``cifar10`` or ``imagenette``.
        train, test: Images of each of the ten classes.
        size: Height and width.
    """
    draw = torch.Generator().manual_seed(0)
    other = "val" if name == "imagenette" else "test"
    for split, count in (("train", train), (other, test)):
        for label, kind in enumerate(CLASSES):
            folder = root / name / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = torch.randint(0, 60, (3, *size), generator=draw) + 19 * label
                write_jpeg(pixels.to(torch.uint8), str(folder / f"{number}.jpeg"))


def write_scenes(root: Path, count: int = 8) -> None:
    """Write ``camvid/`` as PASCAL VOC is laid out: scenes of 24 × 32 pixels whose halves are of two classes each."""
    draw = torch.Generator().manual_seed(1)
    parts = {name: root / "camvid" / name for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")}
    for folder in parts.values():
        folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        names = [f"{split}{number}" for number in range(count)]
        for name in names:
            upper, lower = (int(c) for c in torch.randperm(11, generator=draw)[:2] + 1)
            mask = torch.full((24, 32), upper)
            mask[12:] = lower
            pixels = 20 * mask + torch.randint(0, 20, (3, 24, 32), generator=draw)
            write_png(pixels.to(torch.uint8), str(parts["JPEGImages"] / f"{name}.png"))
            write_png(mask[None].to(torch.uint8), str(parts["SegmentationClass"] / f"{name}.png"))
        (parts["ImageSets/Segmentation"] / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
