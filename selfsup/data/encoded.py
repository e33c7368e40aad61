"""Images that are decoded when they are read, or read from a cache of their pixels; the damaged ones are counted."""

from __future__ import annotations

import copy
import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from tqdm import tqdm

from selfsup.data.base import DataConfig, ImageDataset
from selfsup.data.cache import Pixels, open_cache
from selfsup.data.decode import UndecodableError, decode_image
from selfsup.data.resident import ResidentDataset
from selfsup.data.workers import usable_cores
from selfsup.errors import UserError
from selfsup.types import ImageFacts

logger = logging.getLogger(__name__)


class Undecodable:
    """The images of a split that turned out to be undecodable, and how many may be.

    Args:
        root: Folder of the source.
        total: Number of images in the split.
        allowed: Largest fraction of undecodable images, rounded up to whole images.
    """

    def __init__(self, root: Path, total: int, allowed: float) -> None:
        self.root, self.total, self.allowed = root, total, allowed
        self.rows: set[int] = set()
        self._reported: set[int] = set()

    def report(self, row: int, name: str) -> None:
        """Log an image once.

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


def side_of_source(asked: int | None, image_size: int) -> int:
    """Return ``asked``, or by default a side that leaves views some room: 8/7 of an ``image_size`` above 64 pixels."""
    return asked or (round(image_size * 8 / 7) if image_size > 64 else image_size)


class EncodedDataset(ImageDataset):
    """A split whose images are decoded when they are read; where they lie is the subclass's part.

    Args:
        root: Folder of the source, for messages.
        count: Number of images.
        labels: int64 ``[N]``, or None.
        facts: What is known of the images.
        source_size: Side of the square that each image is brought to; None as :func:`side_of_source`.
        max_undecodable: Largest fraction of undecodable images, rounded up to whole images.
        keys: int64 ``[N]``, which image each is (``selfsup.data.membership``), or None.
    """

    resident = False

    def __init__(
        self,
        root: Path,
        count: int,
        labels: Tensor | None,
        facts: ImageFacts,
        *,
        source_size: int | None = None,
        max_undecodable: float = 0.01,
        keys: Tensor | None = None,
    ) -> None:
        self.root = root
        self._undecodable = Undecodable(root, count, max_undecodable)
        self._pixels: Pixels | None = None
        self.labels = labels
        self.index = torch.arange(count)
        self.keys = keys
        self.facts = facts
        self.source_size = side_of_source(source_size, facts.image_size)

    @abstractmethod
    def row_name(self, row: int) -> str:
        """Return the place of the image in the source, as a path below ``root``."""

    @abstractmethod
    def encoded(self, row: int) -> bytes | Path:
        """Return the content of an image file, or its path.

        Raises:
            UndecodableError: The source has none in this place.
            OSError: It cannot be read.
        """

    @abstractmethod
    def identity(self) -> Iterator[bytes]:
        """Yield what tells the images of the whole split from any others: two splits that agree hold the same files."""

    def use_cache(self, folder: Path) -> None:
        """Read pixels from a cache below ``folder`` from now on; build it first where it is missing.

        Raises:
            UserError: The folder cannot be written, or more images are undecodable than allowed.
        """
        if len(self.index) != self._undecodable.total:
            raise ValueError("a part shares the cache of its whole split: call use_cache before subset")
        self._pixels = open_cache(
            folder, f"{self.name}-{self.split}", self.identity(), len(self), self.source_size, self._decode
        )
        self.cached = True
        for row in self._pixels.undecodable:
            self._undecodable.report(row, self.row_name(row))

    def read(self, positions: Tensor) -> Tensor:
        images, decoded = self.read_decodable(positions)
        if not decoded.all():
            bad = int(self.index[positions[~decoded]][0])
            raise UserError(f"{self.root / self.row_name(bad)} cannot be decoded; repair it or take it out.")
        return images

    def read_decodable(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.index[positions]
        if self._pixels is not None:
            return self._pixels.read(rows)
        images = torch.zeros(len(positions), 3, self.source_size, self.source_size, dtype=torch.uint8)
        decoded = torch.zeros(len(positions), dtype=torch.bool)
        for slot, row in enumerate(rows.tolist()):
            if row in self._undecodable.rows:
                continue
            try:
                images[slot] = self._decode(row)
                decoded[slot] = True
            except UndecodableError:
                self._undecodable.rows.add(row)
        return images, decoded

    def report_undecodable(self, positions: Tensor) -> None:
        for row in self.index[positions].tolist():
            self._undecodable.report(row, self.row_name(row))

    def subset(self, positions: Tensor) -> Self:
        part = copy.copy(self)  # shares the source, the cache and the record of damaged images
        part.index = self.index[positions]
        part.labels = None if self.labels is None else self.labels[positions]
        part.keys = None if self.keys is None else self.keys[positions]
        return part

    def decode_all(self) -> ResidentDataset:
        """Decode every image in threads, or read the cache, and keep all in memory; undecodable ones are left out.

        Raises:
            UserError: More images are undecodable than allowed.
        """
        images = torch.empty(len(self), 3, self.source_size, self.source_size, dtype=torch.uint8)
        decoded = torch.zeros(len(self), dtype=torch.bool)

        def decode(position: int) -> None:
            image, good = self.read_decodable(torch.tensor([position]))
            images[position], decoded[position] = image[0], good[0]

        # Threads, not processes: the decoders run outside Python's lock and write into the one tensor
        with ThreadPoolExecutor(usable_cores()) as pool:
            done = pool.map(decode, range(len(self)))
            for _ in tqdm(done, total=len(self), desc=f"decoding {self.split}", unit="image", delay=2):
                pass
        self.report_undecodable((~decoded).nonzero().flatten())
        return ResidentDataset(
            images,
            self.labels,
            self.facts,
            rows=decoded.nonzero().flatten(),
            index=self.index,
            keys=self.keys,
        )

    def _decode(self, row: int) -> Tensor:
        try:
            return decode_image(self.encoded(row), self.source_size)
        except OSError as error:
            raise UndecodableError(f"{self.row_name(row)} cannot be read: {error}") from error


def prepared(parts: Mapping[str, EncodedDataset], config: DataConfig, cache: str | None) -> dict[str, ImageDataset]:
    """Bring the splits of a source to where they are read from: the cache, and memory where all of them fit."""
    needed = sum(len(part) * 3 * part.source_size**2 for part in parts.values())
    found: dict[str, ImageDataset] = {}
    for split, part in parts.items():
        if cache is not None:
            part.use_cache(Path(cache).expanduser())
        found[split] = part.decode_all() if needed <= config.resident_limit_mb * 2**20 else part
    return found
