"""A folder of one's own images, with a folder for each class or without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from selfsup.data.base import DataConfig, SourceSplits
from selfsup.data.encoded import prepared
from selfsup.data.files import FileDataset, find_images
from selfsup.data.membership import name_keys
from selfsup.data.splits import draw_test
from selfsup.errors import UserError
from selfsup.registry import sources


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
        cache: Folder for the decoded and resized images, so that only the first epoch decodes; it takes three bytes
            a pixel. None decodes in every epoch.
    """

    name: str = "image_folder"
    image_size: int = 224
    labelled: bool | None = None
    test_fraction: float = 0.2
    source_size: int | None = None
    max_undecodable: float = 0.01
    cache: str | None = None


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
        train, test = draw_test(_keys(root, train_root, train_names), config.test_fraction, config.membership)
        train_names, test_names = [train_names[place] for place in train], [train_names[place] for place in test]
        test_root = train_root
    else:
        test_names = _images(test_root)

    classes = _classes(config, root, train_names + test_names)

    def split(name: str, folder: Path, names: list[str]) -> FileDataset:
        return FileDataset(
            folder,
            names,
            _labels(names, classes),
            config.facts(name, classes=classes),
            source_size=config.source_size,
            max_undecodable=config.max_undecodable,
            keys=_keys(root, folder, names),
        )

    parts = {"train": split("train", train_root, train_names)}
    if test_names:
        parts["test"] = split("test", test_root, test_names)
    found = prepared(parts, config, config.cache)
    return SourceSplits(found["train"], found.get("test"))


def _keys(root: Path, folder: Path, names: list[str]) -> Tensor:
    """Return which image each file of a folder is: its path below the root of the source."""
    above = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    return name_keys(above + name for name in names)


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
