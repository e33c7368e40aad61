"""A folder of one's own images, with a folder for each class or without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from selfsup.data.base import DataConfig, ImageDataset, SourceSplits
from selfsup.data.files import FileDataset, find_images
from selfsup.errors import UserError
from selfsup.registry import sources
from selfsup.types import Normalization


@dataclass
class ImageFolderConfig(DataConfig):
    """Settings of a folder of images.

    ``root`` holds ``train`` and, as the test split, ``test`` or ``val``; or it is one folder of images, of which
    ``test_fraction`` are set aside by a fixed draw.

    Attributes:
        labelled: The first folder of each path is its class. None: when every image lies in a folder and there are
            at least two such folders.
        test_fraction: Fraction set aside where the root has no test split; 0 sets none aside.
        source_size: Side of the square that each file is brought to before views are cut from it; None is 8/7 of
            ``image_size`` above 64 pixels (256 for 224), ``image_size`` otherwise.
        max_undecodable: Largest fraction of files that may turn out to be undecodable, rounded up to whole files of a
            split; they are left out.
    """

    name: str = "image_folder"
    image_size: int = 224
    labelled: bool | None = None
    test_fraction: float = 0.2
    source_size: int | None = None
    max_undecodable: float = 0.01


@sources.register("image_folder", ImageFolderConfig)
def image_folder(config: ImageFolderConfig) -> SourceSplits:
    """Your own images: set data.root; a folder for each class, or no labels."""
    for setting in ("test_fraction", "max_undecodable"):
        if not 0 <= getattr(config, setting) < 1:
            raise UserError(f"data.{setting} is {getattr(config, setting)}; set a fraction from 0 to below 1.")
    root = _root(config)
    train_root = root / "train" if (root / "train").is_dir() else root
    test_root = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if train_root == root:
        test_root = None  # folders called "test" or "val" are classes like others
    train_names = _images(train_root)
    if test_root is None:
        train_names, test_names = _set_aside(train_names, config.test_fraction)
        test_root = train_root
    else:
        test_names = _images(test_root)

    classes = _classes(config, root, train_names + test_names)
    source_size = config.source_size or (
        round(config.image_size * 8 / 7) if config.image_size > 64 else config.image_size
    )
    image_bytes = 3 * source_size**2
    resident = (len(train_names) + len(test_names)) * image_bytes <= config.resident_limit_mb * 2**20

    def split(name: str, folder: Path, names: list[str]) -> ImageDataset:
        files = FileDataset(
            folder,
            names,
            _labels(names, classes),
            name="image_folder",
            split=name,
            source_size=source_size,
            image_size=config.image_size,
            normalization=Normalization(tuple(config.mean), tuple(config.std)),
            classes=classes,
            max_undecodable=config.max_undecodable,
        )
        return files.decode_all() if resident else files

    return SourceSplits(
        train=split("train", train_root, train_names),
        test=split("test", test_root, test_names) if test_names else None,
    )


def _root(config: ImageFolderConfig) -> Path:
    if config.root is None:
        raise UserError("data.root is not set; set it to your folder of images.")
    root = Path(config.root).expanduser()
    if not root.exists():
        raise UserError(f"data.root: there is no folder {root}; set data.root to your folder of images.")
    if not root.is_dir():
        raise UserError(f"data.root: {root} is a file; set data.root to the folder that holds the images.")
    return root


def _images(folder: Path) -> list[str]:
    names = find_images(folder)
    if not names:
        raise UserError(f"data.root: {folder} holds no images; set data.root to a folder that does.")
    return names


def _set_aside(names: list[str], fraction: float) -> tuple[list[str], list[str]]:
    # Fixed, not subset_seed: what is tested must not change with a setting of the training images
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    tested = set(order[: round(fraction * len(names))])
    if len(tested) == len(names):
        raise UserError(f"data.test_fraction is {fraction}, which leaves no training image; lower it.")
    train = [name for position, name in enumerate(names) if position not in tested]
    return train, [names[position] for position in sorted(tested)]


def _classes(config: ImageFolderConfig, root: Path, names: list[str]) -> tuple[str, ...] | None:
    all_in_folders = all("/" in name for name in names)
    if config.labelled and not all_in_folders:
        loose = next(name for name in names if "/" not in name)
        raise UserError(f"data.labelled is true but {loose} in {root} lies in no class folder; move it or set false.")
    folders = tuple(sorted({name.split("/", 1)[0] for name in names})) if all_in_folders else ()
    labelled = len(folders) > 1 if config.labelled is None else config.labelled
    return folders if labelled else None


def _labels(names: list[str], classes: tuple[str, ...] | None) -> Tensor | None:
    if classes is None:
        return None
    number = {name: label for label, name in enumerate(classes)}
    return torch.tensor([number[name.split("/", 1)[0]] for name in names], dtype=torch.int64)
