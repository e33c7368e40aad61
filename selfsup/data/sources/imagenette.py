"""Imagenette: photographs of ten ImageNet classes that are easily told apart (Howard 2019, version 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from selfsup.data.base import SourceSplits
from selfsup.data.encoded import EncodedConfig, EncodedDataset, as_source
from selfsup.data.files import FileDataset
from selfsup.data.found import NOT_TAKEN, Found
from selfsup.data.listing import list_images
from selfsup.data.location import data_root, from_torchvision, missing
from selfsup.data.membership import name_keys
from selfsup.errors import UserError
from selfsup.registry import sources
from selfsup.settings import Sides, setting

#: What the folders of the classes are called, and what the classes are.
CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
FOLDERS = {"160": "imagenette2-160", "320": "imagenette2-320", "full": "imagenette2"}
SPLITS = {"train": "train", "test": "val"}


@dataclass
class ImagenetteConfig(EncodedConfig):
    """Settings of Imagenette; ``root`` is its folder, which holds ``train`` and ``val``, or the one that holds that.

    Attributes:
        variant: Which of the published archives: the shorter side of its images, or ``full``.
    """

    name: str = "imagenette"
    image_size: Sides = 128
    variant: str = setting("160", choices=tuple(FOLDERS))


@sources.register("imagenette", ImagenetteConfig)
def imagenette(config: ImagenetteConfig) -> SourceSplits:
    """Photographs of ten kinds of things, of any shape, the shorter side 160 px, 9,469 + 3,925."""
    folder = _folder(config)
    listing = list_images(folder)
    found = Found(str(folder))
    for (reason, detail), count in listing.left_out.items():
        found.leave_out(reason, detail, count)
    parts: dict[str, EncodedDataset] = {}
    number = {name: label for label, name in enumerate(CLASSES)}
    taken = 0
    for split, below in SPLITS.items():
        names = [n for n in listing.names if n.startswith(f"{below}/") and n.split("/")[1] in number]
        if not names:
            raise UserError(
                f"data.root: {folder}/{below} has no images in folders called {next(iter(CLASSES))} and so on; set "
                "data.root to a complete Imagenette, or read other folders with data=image_folder."
            )
        taken += len(names)
        parts[split] = FileDataset(
            folder,
            names,
            torch.tensor([number[name.split("/")[1]] for name in names]),
            config.facts(split, classes=CLASSES.values()),
            keys=name_keys(names),
            decoding=config.decoding(),
        )
    if len(listing.names) > taken:
        found.leave_out(NOT_TAKEN, "", len(listing.names) - taken)
    found.read, found.labels, found.classes = taken, "the folders", tuple(CLASSES.values())
    return as_source(parts, config, found, {split: f"folder {below}" for split, below in SPLITS.items()})


def _folder(config: ImagenetteConfig) -> Path:
    root = data_root(config)
    places = (root, root / FOLDERS[config.variant], root / "imagenette")
    found = next((place for place in places if (place / "train").is_dir() and (place / "val").is_dir()), None)
    if found is None and config.download:
        from torchvision.datasets import Imagenette

        size = "full" if config.variant == "full" else f"{config.variant}px"
        root.mkdir(parents=True, exist_ok=True)
        from_torchvision(config, Imagenette, size=size)
        found = root / FOLDERS[config.variant]
    if found is None:
        raise missing(config)
    return found
