"""The decoded images of a split in memory, as far as they have been asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import Read
from selfsup.data.form import Form
from selfsup.data.workers import usable_cores
from selfsup.ragged import Images, pack, unpack


class Memory:
    """The pixels of a split as far as they have been asked for; the parts of the split share it."""

    def __init__(self, total: int, side: int, form: Form) -> None:
        # takes memory where it is written to
        self._squares = torch.empty(total, form.channels, side, side, dtype=form.dtype)
        self._others: dict[int, Tensor] = {}
        self._known = torch.zeros(total, dtype=torch.bool)
        self._decoded = torch.zeros(total, dtype=torch.bool)

    def fill(self, rows: Tensor, read: Callable[[Tensor], Read], what: str) -> Tensor:
        """Read the rows that are not here yet, and return bool ``[n]``: which of all could be decoded."""
        missing = torch.unique(rows[~self._known[rows]])

        def one(row: Tensor) -> None:
            pixels, decoded, size = read(row)
            self._decoded[row] = decoded
            if size is None:
                self._squares[int(row)] = pixels[0]
            else:
                self._others[int(row)] = unpack(Images(pixels, size))[0]

        # Threads, not processes: the decoders run outside Python's lock and write into the one tensor
        if len(missing):
            with ThreadPoolExecutor(usable_cores()) as pool:
                done = pool.map(one, torch.split(missing, 1))
                for _ in progress_bar(done, total=len(missing), desc=what, unit="image", delay=2):
                    pass
            self._known[missing] = True
        return self._decoded[rows]

    @property
    def images(self) -> Tensor | list[Tensor]:
        """All images, as ``ResidentDataset`` takes them; what was not asked for is anything."""
        if not self._others:
            return self._squares
        return [self._others.get(row, square) for row, square in enumerate(self._squares)]

    def take(self, rows: Tensor) -> Images:
        """Return the images of some rows."""
        if not self._others:
            return Images(self._squares[rows])
        return pack([self._others.get(row, self._squares[row]) for row in rows.tolist()])
