"""PASCAL VOC for segmentation, and any folder laid out as it is (Everingham et al. 2010)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset, SourceSplits
from selfsup.data.decode import full_shape, middle, shape_for
from selfsup.data.encoded import EncodedConfig, mean_aspect, side_of_source, typical_shapes
from selfsup.data.files import FileDataset
from selfsup.data.found import NOT_LISTED, Found
from selfsup.data.listing import list_images
from selfsup.data.location import data_root, from_torchvision, missing
from selfsup.data.membership import name_keys
from selfsup.data.resident import ResidentDataset
from selfsup.errors import UserError
from selfsup.ragged import covering
from selfsup.registry import sources
from selfsup.types import ImageFacts, Size, as_size, height_width

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
LISTS = Path("ImageSets/Segmentation")


@dataclass
class VocConfig(EncodedConfig):
    """Settings of a folder laid out as PASCAL VOC.

    ``root`` holds ``JPEGImages``, ``SegmentationClass`` and ``ImageSets/Segmentation``, or torchvision's
    ``VOCdevkit/VOC<year>`` that does. Masks are PNG files of class numbers: 0 is the background, 255 is left out of
    training and scoring. An image holds objects of several classes, so there are masks and no labels.

    Attributes:
        year: Which of torchvision's folders, and what ``download`` fetches.
        train_list, test_list: Names of the lists of images in ``ImageSets/Segmentation``; ``test_list`` null: no test
            images.
        classes: Names of the mask values 1, 2, …; the twenty of PASCAL VOC unless said otherwise.
    """

    name: str = "voc"
    year: str = "2012"
    train_list: str = "train"
    test_list: str | None = "val"
    classes: list[str] = field(default_factory=lambda: list(CLASSES))


class VocDataset(FileDataset):
    """Images with a mask file each, decoded when they are read; arguments as ``FileDataset``, and ``masks``.

    Args:
        masks: Folder of the masks, named as the images with the ending ``.png``.
    """

    def __init__(self, root: Path, names: list[str], facts: ImageFacts, *, masks: Path, **settings: Any) -> None:
        super().__init__(root, names, None, facts, **settings)
        self.masks = masks

    def read_masks(self, positions: Tensor) -> Tensor:
        """Return masks uint8 ``[n,h,w]`` of the central squares of the images as they are stored.

        With a rectangular ``image_size`` they are of the middle in its aspect: of whole frames where that is theirs.

        Raises:
            UserError: A mask is missing, damaged, no image of class numbers, or not of its image's size.
        """
        shape = _mask_shape(self.image_size, self.source_size)
        found = torch.zeros(len(positions), *shape, dtype=torch.uint8)
        for slot, position in enumerate(positions.tolist()):
            found[slot] = _read_mask(self.path(position), self.masks, shape, self.max_aspect)
        return found

    def decode_all(self) -> ResidentDataset:
        images = super().decode_all()
        assert isinstance(images, ResidentDataset)
        decoded = torch.isin(self.index, images.index).nonzero().flatten()
        with progress_bar(total=len(decoded), desc=f"masks of {self.split}", unit="image", delay=2) as bar:
            masks = []
            for block in torch.split(decoded, 16):
                masks.append(self.read_masks(block))
                bar.update(len(block))
        return images.with_masks(torch.cat(masks))


@sources.register("voc", VocConfig)
def voc(config: VocConfig) -> SourceSplits:
    """PASCAL VOC's segmentation images, or a folder laid out like it: images with masks, no labels."""
    folder = _folder(config)
    lists = {"train": config.train_list} | ({} if config.test_list is None else {"test": config.test_list})
    listing = list_images(folder / "JPEGImages")
    files = {name.rpartition(".")[0]: name for name in listing.names}
    names = {split: _names(folder, name, files) for split, name in lists.items()}
    parts = {
        split: VocDataset(
            folder / "JPEGImages",
            some,
            config.facts(split, config.form().channels, config.classes),
            masks=folder / "SegmentationClass",
            keys=name_keys(some),
            decoding=config.decoding(),
        )
        for split, some in names.items()
    }
    aspect = mean_aspect(typical_shapes(list(parts.values())), config.max_aspect)
    source_size = side_of_source(config.source_size, config.image_size)
    height, width = _mask_shape(as_size(config.image_size), source_size)
    needed = sum(map(len, parts.values())) * (3 * aspect * source_size**2 + height * width)  # three channels, and masks

    def split(name: str) -> ImageDataset:
        images = parts[name]
        if config.cache is not None:
            images.use_cache(Path(config.cache).expanduser())
        ready: ImageDataset = images
        if needed <= config.resident_limit_mb * 2**20:
            ready = images.decode_all()
            found.undecodable(images.undecodable())
        found.splits[name] = (len(ready), f"{lists[name]}.txt")
        return ready

    found = Found(str(folder / "JPEGImages"), read=len(set(chain(*names.values()))))
    for (reason, detail), number in listing.left_out.items():
        found.leave_out(reason, detail, number)
    if len(listing.names) > found.read:
        found.leave_out(NOT_LISTED, "", len(listing.names) - found.read)
    return SourceSplits(split("train"), split("test") if "test" in names else None, found=found)


def _folder(config: VocConfig) -> Path:
    root = data_root(config)
    places = (root, root / f"VOC{config.year}", root / "VOCdevkit" / f"VOC{config.year}")
    found = next((place for place in places if (place / LISTS).is_dir()), None)
    if found is None and config.download:
        from torchvision.datasets import VOCSegmentation

        from_torchvision(config, VOCSegmentation, year=config.year)
        found = next((place for place in places if (place / LISTS).is_dir()), None)
    if found is None:
        raise missing(config)
    for part in ("JPEGImages", "SegmentationClass"):
        if not (found / part).is_dir():
            raise UserError(f"data.root: {found} has no folder {part}; set data.root to a folder laid out as VOC.")
    return found


def _names(folder: Path, which: str, files: dict[str, str]) -> list[str]:
    """Return the files of the images that a list in ``ImageSets/Segmentation`` names without their ending.

    Args:
        folder: The source's.
        which: The list.
        files: The images there are, by their names without the ending.
    """
    path = folder / LISTS / f"{which}.txt"
    try:
        stems = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in (folder / LISTS).glob("*.txt"))) or "none"
        raise UserError(
            f"data.train_list, data.test_list: there is no {path}; choose one of those there are ({known})."
        ) from error
    if not stems:
        raise UserError(f"data.train_list, data.test_list: {path} names no images; choose another list.")
    absent = [stem for stem in stems if stem not in files]
    if absent:
        raise UserError(
            f"data.root: {len(absent)} of the {len(stems)} images of {path} are not in JPEGImages, {absent[0]} for "
            "one; complete the folder or shorten the list."
        )
    return [files[stem] for stem in stems]


def _mask_shape(size: Size, source_size: int) -> tuple[int, int]:
    """Return height and width of masks: those of the images that evaluation sees, the shorter side ``source_size``."""
    height, width = height_width(size)
    short = min(height, width)
    return round(height * source_size / short), round(width * source_size / short)


def _read_mask(image: Path, masks: Path, shape: tuple[int, int], max_aspect: float) -> Tensor:
    """Return the mask of the middle of what is stored of an image, brought to cover a shape."""
    path = masks / f"{image.stem}.png"
    try:
        with Image.open(path) as file:
            if file.mode not in ("P", "L"):
                raise UserError(
                    f"{path} is an image of mode {file.mode}; masks must hold class numbers (PNG with a palette or "
                    "8-bit grey), so convert its colours to numbers."
                )
            mask = file.copy()
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a damaged PNG
        raise UserError(f"{path} cannot be read as a mask ({error}); repair it or take it off the list.") from error
    height, width = full_shape(image)
    if (mask.height, mask.width) != (height, width):
        raise UserError(
            f"{path} has {mask.width} × {mask.height} pixels and its image {width} × {height}; they must agree."
        )
    top, left, height, width = middle(mask.height, mask.width, max_aspect)
    stored = covering(shape_for(mask.height, mask.width, min(shape), max_aspect), shape)
    scale_y, scale_x = height / stored[0], width / stored[1]
    if shape[0] == shape[1]:  # a central square leaves the odd pixel on the right, a central part as torchvision does
        rows, columns = ((side - part) // 2 for side, part in zip(stored, shape, strict=True))
    else:
        rows, columns = (round((side - part) / 2) for side, part in zip(stored, shape, strict=True))
    left_most, upper = left + columns * scale_x, top + rows * scale_y
    box = (left_most, upper, left_most + shape[1] * scale_x, upper + shape[0] * scale_y)
    part = mask.resize((shape[1], shape[0]), Image.Resampling.NEAREST, box=box)
    return torch.from_numpy(np.array(part, dtype=np.uint8))
