"""Image files on disk: finding them, and reading them when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from selfsup.data.encoded import EncodedDataset
from selfsup.types import ImageFacts


class FileDataset(EncodedDataset):
    """A split of image files; arguments as ``EncodedDataset``, and ``names``.

    Args:
        root: Folder of the files.
        names: Their paths relative to it.
    """

    def __init__(
        self, root: Path, names: Sequence[str], labels: Tensor | None, facts: ImageFacts, **settings: Any
    ) -> None:
        super().__init__(root, len(names), labels, facts, **settings)
        # Bytes in one array: a list of strings would be copied into every worker as its reference counts change
        self._names = np.array([os.fsencode(name) for name in names])

    def path(self, position: int) -> Path:
        """Return the file of the image at a position."""
        return self.root / self.row_name(int(self.index[position]))

    def row_name(self, row: int) -> str:
        return os.fsdecode(self._names[row])

    def encoded(self, row: int) -> Path:
        return self.root / self.row_name(row)

    def identity(self) -> Iterator[bytes]:
        """Yield the folder that all the files lie in, and of each file its name in there, size and times."""
        names = [os.fsdecode(name) for name in self._names]
        common = os.path.commonpath({os.path.dirname(name) for name in names}) if names else ""
        yield os.fsencode((self.root / common).resolve())
        for name in names:
            yield os.fsencode(name[len(common) :].lstrip("/")) + file_stamp(self.root / name)


def file_stamp(path: Path) -> bytes:
    """Return what changes when a file is written: size, and the times of the last change of content and of the entry.

    The second cannot be set by hand, so a file that was replaced by one of its size and date is noticed as well.
    """
    try:
        found = path.stat()
    except OSError:
        return b" missing"
    return f" {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}".encode()
