"""Any torch ``Dataset`` of images as one of ours."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.data.decode import resize
from selfsup.data.resident import ResidentDataset
from selfsup.errors import UserError
from selfsup.ragged import central_part
from selfsup.types import GREY, ImageFacts, Normalization, as_size, height_width

ROUNDING = 0.3  # of a level of 255: images of 8 bits as floats are nearer to one, also in half precision
DEEPER = "data=image_folder reads files of 16 bits and floats with all of them"
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class SizedDataset(Protocol):
    """What is needed of a torch dataset: a length, and items by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Any: ...


def as_images(
    dataset: SizedDataset | ImageDataset,
    *,
    image_size: int | Sequence[int] | None = None,
    name: str = "dataset",
    split: str = "train",
    normalization: Normalization | None = None,
    resident_limit_mb: int = 2048,
) -> ImageDataset:
    """Return a torch dataset of images, or of (image, label), as one of ours; one of ours is returned as it is.

    An image may be a PIL image, a uint8 array ``[H,W]`` or ``[H,W,C]``, a uint8 tensor ``[C,H,W]``, or a float tensor
    ``[C,H,W]`` in [0, 1] (kept with 8 bits), without random changes and not normalised: views and statistics are made
    here. Its central square is kept and resized; of a rectangular ``image_size`` the central part of its aspect. Where
    all fit in memory they are read once; others are read when they are needed, in this process, and have labels when
    the dataset lists them as ``targets`` or ``labels``.

    Args:
        dataset: Anything with ``len`` and items by position.
        image_size: Side in pixels, or (height, width); None is the shorter side of the first image.
        name, split: What messages and records call it.
        normalization: Statistics of images scaled to [0, 1]; None is ImageNet's, their mean for grey images.
        resident_limit_mb: Most memory that the images may take.

    Raises:
        UserError: An empty dataset, or items that are no images.
    """
    if isinstance(dataset, ImageDataset):
        return dataset
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UserError(
            f"data: {type(dataset).__name__} has no length or no items by position; give a map-style torch Dataset."
        )
    if not len(dataset):
        raise UserError(f"data: {type(dataset).__name__} is empty; give a dataset with images.")
    first, label = _item(dataset, 0)
    size = as_size(image_size or min(first.shape[1:]))
    height, width = height_width(size)
    statistics = normalization or (IMAGENET if len(first) != 1 else GREY)
    facts = ImageFacts(name, split, len(first), size, statistics)
    if len(dataset) * len(first) * height * width > resident_limit_mb * 2**20:
        return TorchDataset(dataset, facts)
    images = torch.empty(len(dataset), len(first), height, width, dtype=torch.uint8)
    labels = torch.full((len(dataset),), -1)
    for row in progress_bar(range(len(dataset)), desc=f"reading {name}", unit="image", delay=2):
        image, label = _item(dataset, row)
        images[row] = _part(image, facts, row)
        labels[row] = -1 if label is None else label
    known = labels if bool((labels >= 0).any()) else _listed_labels(dataset)
    return ResidentDataset(images, known, _with_classes(facts, dataset, known))


class TorchDataset(ImageDataset):
    """A torch dataset whose images are read when they are needed; see :func:`as_images`.

    Args:
        dataset: Has the items.
        facts: Channels and size of the images that are read.
    """

    resident = False

    def __init__(self, dataset: SizedDataset, facts: ImageFacts) -> None:
        self._dataset = dataset
        self.labels = _listed_labels(dataset)
        self.facts = _with_classes(facts, dataset, self.labels)
        self.index = torch.arange(len(dataset))

    def read(self, positions: Tensor) -> Tensor:
        rows = self.index[positions].tolist()
        return torch.stack([_part(_item(self._dataset, row)[0], self.facts, row) for row in rows])

    def subset(self, positions: Tensor) -> Self:
        part = type(self)(self._dataset, self.facts)
        part.index = self.index[positions]
        part.labels = None if self.labels is None else self.labels[positions]
        return part


def _item(dataset: SizedDataset, row: int) -> tuple[Tensor, int | None]:
    """Return the image of an item as uint8 ``[C,H,W]``, and its label when it is a class number."""
    item = dataset[row]
    image, label = (item[0], item[1] if len(item) > 1 else None) if isinstance(item, tuple | list) else (item, None)
    try:
        pixels = _pixels(image)
    except ValueError as error:
        raise UserError(f"data: item {row} of {type(dataset).__name__} is not an image: {error}.") from error
    number = np.asarray(label)
    return pixels, int(number) if number.size == 1 and number.dtype.kind in "iu" else None


def _pixels(image: Any) -> Tensor:
    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):  # Pillow would make white of all above 255
            raise ValueError(f"it is a picture of mode {image.mode}, which has more than 8 bits; {DEEPER}")
        image = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
        if image.ndim == 3:
            image = image.permute(2, 0, 1)
    if not isinstance(image, Tensor) or image.ndim not in (2, 3):
        raise ValueError(f"it is {type(image).__name__}; give PIL images, uint8 arrays or tensors [C,H,W]")
    pixels: Tensor = image[None] if image.ndim == 2 else image
    if pixels.is_floating_point():
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"its values go from {low:.3g} to {high:.3g}; give floats in [0, 1], not normalised ones")
        levels = pixels * 255
        if float((levels - levels.round()).abs().max()) > ROUNDING:
            warnings.warn(f"data: floating-point images of a Dataset are kept with 8 bits; {DEEPER}.", stacklevel=2)
        return levels.round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        deeper = f"; {DEEPER}" if pixels.dtype == torch.uint16 else ""
        raise ValueError(f"its type is {pixels.dtype}; give uint8, or floats in [0, 1]{deeper}")
    return pixels


def _part(image: Tensor, facts: ImageFacts, row: int) -> Tensor:
    if len(image) != facts.channels:
        raise UserError(
            f"data: item {row} has {len(image)} channels and the first {facts.channels}; give all the same."
        )
    return resize(central_part(image, facts.image_size), height_width(facts.image_size))


def _listed_labels(dataset: Any) -> Tensor | None:
    """Return the labels that a dataset lists, as torchvision's do, or that its base does for a ``Subset``."""
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        below = _listed_labels(dataset.dataset)
        return None if below is None else below[torch.as_tensor(dataset.indices)]
    for name in ("targets", "labels"):
        listed = getattr(dataset, name, None)
        if isinstance(listed, Tensor | np.ndarray | Sequence) and len(listed) == len(dataset):
            labels = torch.as_tensor(listed)
            if labels.ndim == 1 and not labels.is_floating_point():
                return labels.long()
    return None


def _with_classes(facts: ImageFacts, dataset: Any, labels: Tensor | None) -> ImageFacts:
    if labels is None:
        return facts
    while hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    count = int(labels.max()) + 1
    names = getattr(dataset, "classes", None)
    fits = isinstance(names, Sequence) and len(names) >= count
    classes = tuple(map(str, names if fits and names is not None else range(count)))
    return dataclasses.replace(facts, classes=classes)
