"""Image files on disk: finding them, reading them when they are needed, and keeping count of the damaged ones."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from selfsup.data.base import ImageDataset
from selfsup.data.decode import UndecodableError, decode_image
from selfsup.data.resident import ResidentDataset
from selfsup.errors import UserError
from selfsup.types import Normalization

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

logger = logging.getLogger(__name__)


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


class UndecodableFiles:
    """The files of a split that turned out to be undecodable, and how many may be.

    Args:
        root: Folder of the files.
        total: Number of files in the split.
        allowed: Largest fraction of undecodable files, rounded up to whole files.
    """

    def __init__(self, root: Path, total: int, allowed: float) -> None:
        self.root, self.total, self.allowed = root, total, allowed
        self.rows: set[int] = set()
        self._reported: set[int] = set()

    def report(self, row: int, name: str) -> None:
        """Log a file once.

        Raises:
            UserError: There are now more than allowed.
        """
        if row in self._reported:
            return
        self.rows.add(row)
        self._reported.add(row)
        logger.warning("%s cannot be decoded and is left out (%d so far)", self.root / name, len(self._reported))
        if len(self._reported) > math.ceil(self.allowed * self.total):
            raise UserError(
                f"{len(self._reported)} of {self.total} images in {self.root} cannot be decoded, {name} for one; "
                f"repair them or raise data.max_undecodable above {self.allowed}."
            )


class FileDataset(ImageDataset):
    """A split whose images are decoded when they are read.

    Args:
        root: Folder of the files.
        names: Their paths relative to it.
        labels: int64 ``[N]``, or None.
        source_size: Side of the square that each image is brought to.
        max_undecodable: Largest fraction of undecodable files, rounded up to whole files.
    """

    resident = False

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Tensor | None,
        *,
        name: str,
        split: str,
        source_size: int,
        image_size: int,
        normalization: Normalization,
        classes: tuple[str, ...] | None = None,
        max_undecodable: float = 0.01,
    ) -> None:
        self.root = root
        # Bytes in one array: a list of strings would be copied into every worker as its reference counts change
        self._names = np.array([os.fsencode(name) for name in names])
        self._undecodable = UndecodableFiles(root, len(names), max_undecodable)
        self.labels = labels
        self.index = torch.arange(len(names))
        self.name, self.split = name, split
        self.channels = 3
        self.source_size, self.image_size = source_size, image_size
        self.normalization = normalization
        self.classes = classes

    def read(self, positions: Tensor) -> Tensor:
        images, decoded = self.read_decodable(positions)
        if not decoded.all():
            bad = int(self.index[positions[~decoded]][0])
            raise UserError(f"{self.root / self._name(bad)} cannot be decoded; repair it or take it out of the folder.")
        return images

    def read_decodable(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        images = torch.zeros(len(positions), 3, self.source_size, self.source_size, dtype=torch.uint8)
        decoded = torch.zeros(len(positions), dtype=torch.bool)
        for slot, row in enumerate(self.index[positions].tolist()):
            if row in self._undecodable.rows:
                continue
            try:
                images[slot] = decode_image(self.root / self._name(row), self.source_size)
                decoded[slot] = True
            except UndecodableError:
                self._undecodable.rows.add(row)
        return images, decoded

    def report_undecodable(self, positions: Tensor) -> None:
        for row in self.index[positions].tolist():
            self._undecodable.report(row, self._name(row))

    def subset(self, positions: Tensor) -> FileDataset:
        part = copy.copy(self)  # shares the names and the record of damaged files
        part.index = self.index[positions]
        part.labels = None if self.labels is None else self.labels[positions]
        return part

    def path(self, position: int) -> Path:
        """Return the file of the image at a position."""
        return self.root / self._name(int(self.index[position]))

    def decode_all(self) -> ResidentDataset:
        """Decode every image in threads and keep them in memory; undecodable ones are left out.

        Raises:
            UserError: More files are undecodable than allowed.
        """
        images = torch.empty(len(self), 3, self.source_size, self.source_size, dtype=torch.uint8)
        decoded = torch.zeros(len(self), dtype=torch.bool)

        def decode(position: int) -> None:
            image, good = self.read_decodable(torch.tensor([position]))
            images[position], decoded[position] = image[0], good[0]

        # Threads, not processes: the decoders run outside Python's lock and write into the one tensor
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            done = pool.map(decode, range(len(self)))
            for _ in tqdm(done, total=len(self), desc=f"decoding {self.split}", unit="image", delay=2):
                pass
        self.report_undecodable((~decoded).nonzero().flatten())
        return ResidentDataset(
            images,
            self.labels,
            name=self.name,
            split=self.split,
            image_size=self.image_size,
            normalization=self.normalization,
            classes=self.classes,
            rows=decoded.nonzero().flatten(),
            index=self.index,
        )

    def _name(self, row: int) -> str:
        return os.fsdecode(self._names[row])
