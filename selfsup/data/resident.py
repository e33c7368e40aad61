"""Images kept in memory: of one shape as one tensor, of which a batch is one indexing; of several as a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from selfsup.data.base import ImageDataset, Read
from selfsup.ragged import Images, central_parts, pack
from selfsup.types import ImageFacts


class ResidentDataset(ImageDataset):
    """A split held in memory, or rows of it.

    Args:
        images: uint8 ``[M,C,H,W]``, or one ``[C,h,w]`` each where they differ in shape.
        labels: int64 ``[M]``, or None. A missing label is -1.
        facts: What is known of the images.
        masks: uint8 ``[M,H,W]``, of central squares where images differ in shape, that hold 0 on the background and
            1 + class on an object; or None.
        rows: int64 ``[N]``, the rows that belong to this part; None is all. The tensors are shared, not copied.
        index: int64 ``[M]``, the stable position of each row in its source split; None is 0, 1, ….
        keys: int64 ``[M]``, which image each row is, or None.
    """

    def __init__(
        self,
        images: Tensor | Sequence[Tensor],
        labels: Tensor | None,
        facts: ImageFacts,
        *,
        masks: Tensor | None = None,
        rows: Tensor | None = None,
        index: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> None:
        if len(images) and len(images[0]) != facts.channels:
            raise ValueError(f"{facts.name}: images of {len(images[0])} channels are said to have {facts.channels}")
        self._images, self._labels, self._masks = images, labels, masks
        self._rows = torch.arange(len(images)) if rows is None else rows
        self._source_index = torch.arange(len(images)) if index is None else index
        self.facts = facts
        self.labels = None if labels is None else labels[self._rows]
        self.index = self._source_index[self._rows]
        self._source_keys = keys
        self.keys = None if keys is None else keys[self._rows]

    def read(self, positions: Tensor) -> Tensor:
        if isinstance(self._images, Tensor):
            rows = self._rows[positions].to(self._images.device, non_blocking=True)
            return self._images.index_select(0, rows)
        image, _, size = self.read_decodable(positions)
        return central_parts(Images(image, size), self.image_size)

    def read_decodable(self, positions: Tensor) -> Read:
        if isinstance(self._images, Tensor):
            return super().read_decodable(positions)
        image, size = pack([self._images[row] for row in self._rows[positions].tolist()])
        return Read(image, torch.ones(len(positions), dtype=torch.bool), size)

    def on(self, device: torch.device) -> ResidentDataset:
        """Return this part with its images on ``device``, where they are then read; all else stays where it is."""
        images = self._images
        part = ResidentDataset(
            images[self._rows].to(device)
            if isinstance(images, Tensor)
            else [images[row].to(device) for row in self._rows.tolist()],
            self.labels,
            self.facts,
            masks=None if self._masks is None else self._masks[self._rows],
            index=self.index,
            keys=self.keys,
        )
        part.targets = self.targets
        return part

    def with_masks(self, masks: Tensor) -> ResidentDataset:
        """Return this part with masks uint8 ``[N,H,W]``, in its order."""
        if isinstance(self._images, Tensor):
            images: Tensor | list[Tensor] = self._images[self._rows]
        else:
            images = [self._images[row] for row in self._rows.tolist()]
        part = ResidentDataset(images, self.labels, self.facts, masks=masks, index=self.index, keys=self.keys)
        part.targets = self.targets
        return part

    @property
    def nbytes(self) -> int:
        """Memory that the images of this part take."""
        if isinstance(self._images, Tensor):
            return len(self) * self._images[:1].nbytes
        return sum(self._images[row].nbytes for row in self._rows.tolist())

    def read_masks(self, positions: Tensor) -> Tensor | None:
        return None if self._masks is None else self._masks.index_select(0, self._rows[positions])

    def without_labels(self) -> Self:
        part = super().without_labels()
        part._labels = None
        return part

    def subset(self, positions: Tensor) -> ResidentDataset:
        part = ResidentDataset(
            self._images,
            self._labels,
            self.facts,
            masks=self._masks,
            rows=self._rows[positions],
            index=self._source_index,
            keys=self._source_keys,
        )
        part.targets = self.targets
        return part


def fits(dataset: ResidentDataset, device: torch.device) -> bool:
    """Whether a GPU has room for the images: at most a quarter of what is free before training begins."""
    return device.type == "cuda" and 4 * dataset.nbytes <= torch.cuda.mem_get_info(device)[0]
