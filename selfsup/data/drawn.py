"""Images that are drawn, each when a part that holds it is first read."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

from selfsup.data.resident import ResidentDataset
from selfsup.types import ImageFacts


class Canvas:
    """The images of a split, which its parts share.

    Args:
        labels: int64 ``[M]``, of all of them.
        size: Side in pixels.
        draw: Gives images uint8 ``[n,3,size,size]`` and masks uint8 ``[n,size,size]`` for rows, int64 ``[n]``.
    """

    def __init__(self, labels: Tensor, size: int, draw: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.labels, self._new = labels, draw
        self._drawn, self._lock = torch.zeros(len(labels), dtype=torch.bool), Lock()
        # nothing is written yet, so that it takes no memory
        self.images = torch.empty(len(labels), 3, size, size, dtype=torch.uint8)
        self.masks = torch.empty(len(labels), size, size, dtype=torch.uint8)

    def draw(self, rows: Tensor) -> None:
        """Draw those of the rows, int64 ``[n]``, that are not there yet."""
        # what is first read for an evaluation is trained on later, and threads that draw are in no mode of this one
        with self._lock, torch.inference_mode(False):
            new = torch.unique(rows[~self._drawn[rows]])
            if len(new):
                self.images[new], self.masks[new] = self._new(new)
                self._drawn[new] = True


class DrawnDataset(ResidentDataset):
    """Images of a canvas, or rows of them: all of the part are drawn when the first is read."""

    def __init__(self, canvas: Canvas, facts: ImageFacts, rows: Tensor | None = None) -> None:
        super().__init__(canvas.images, canvas.labels, facts, masks=canvas.masks, rows=rows)
        self._canvas = canvas

    def read(self, positions: Tensor) -> Tensor:
        self._draw(positions)
        return super().read(positions)

    def read_masks(self, positions: Tensor) -> Tensor | None:
        self._draw(positions)
        return super().read_masks(positions)

    def on(self, device: torch.device) -> ResidentDataset:
        self._canvas.draw(self._rows)
        return super().on(device)

    def with_masks(self, masks: Tensor) -> ResidentDataset:
        self._canvas.draw(self._rows)
        return super().with_masks(masks)

    def subset(self, positions: Tensor) -> DrawnDataset:
        part = DrawnDataset(self._canvas, self.facts, self._rows[positions])
        part.labels = None if self.labels is None else self.labels[positions]
        part.targets = self.targets
        return part

    def _draw(self, positions: Tensor) -> None:
        if len(positions):  # none are read to ask whether there are masks
            self._canvas.draw(self._rows)
