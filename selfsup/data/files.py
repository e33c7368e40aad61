"""Image files on disk: finding them, and reading them when they are needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from selfsup.data.encoded import EncodedDataset
from selfsup.types import ImageFacts

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".jfif",
    ".avif",
)


def find_images(root: Path) -> list[str]:
    """Return the paths of all images below ``root``, relative to it, with ``/``, sorted; hidden files are left out.

    Files are recognised by their extension and not opened.
    """
    with tqdm(desc=f"listing {root.name}", unit="image", delay=2) as progress:
        found = []
        for path in _walk(str(root), ""):
            found.append(path)
            progress.update()
    return sorted(found)


def _walk(folder: str, prefix: str) -> Iterator[str]:
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(EXTENSIONS):
                yield prefix + entry.name
            elif entry.is_dir() and not _leads_back(entry):
                folders.append((entry.path, f"{prefix}{entry.name}/"))
    for path, below in folders:
        yield from _walk(path, below)


def _leads_back(entry: os.DirEntry[str]) -> bool:
    """Whether a symbolic link points at a folder that holds it, which would be walked for ever."""
    if not entry.is_symlink():
        return False
    return Path(os.path.realpath(os.path.dirname(entry.path))).is_relative_to(os.path.realpath(entry.path))


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
        """Yield the folder, and of each file its name, size and times."""
        yield os.fsencode(self.root.resolve())
        for name in self._names:
            yield bytes(name) + file_stamp(self.root / os.fsdecode(name))


def file_stamp(path: Path) -> bytes:
    """Return what changes when a file is written: size, and the times of the last change of content and of the entry.

    The second cannot be set by hand, so a file that was replaced by one of its size and date is noticed as well.
    """
    try:
        found = path.stat()
    except OSError:
        return b" missing"
    return f" {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}".encode()
