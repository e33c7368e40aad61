"""What a reader of image files is, and which one a file takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from selfsup.data.form import Array, Kind, UndecodableError

HEAD = 132  # bytes that tell every format


class Values(NamedTuple):
    """What a file holds: numbers ``[C,H,W]`` as they are, and what the file says is black and white, or None."""

    array: Array
    own_range: Sequence[float] | None = None


class Reader(ABC):
    """Reads one format.

    Attributes:
        name: What it is called in messages.
        endings: Of its files.
        extra: The extra of ``setup.cfg`` that it needs, or None.
    """

    name: ClassVar[str]
    endings: ClassVar[frozenset[str]]
    extra: ClassVar[str | None] = None

    @abstractmethod
    def takes(self, head: bytes) -> bool:
        """Whether a file that begins with these bytes is of the format, and not one that Pillow reads truly."""

    def installed(self) -> bool:
        """Whether the packages that it needs are there."""
        return True

    @abstractmethod
    def kind(self, content: bytes, channel_axis: str | None) -> Kind | None:
        """Return what the content of a file holds, without its pixels; None where Pillow reads it truly."""

    @abstractmethod
    def read(self, content: bytes, channel_axis: str | None, max_pixels: int) -> Values | None:
        """Return the values of a file; None where Pillow reads it truly.

        Raises:
            UndecodableError: It has more than ``max_pixels`` pixels, or is of a kind that is not read.
        """


READERS: dict[str, Reader] = {}


def add(reader: type[Reader]) -> type[Reader]:
    """Decorate a reader so that its files are read by it."""
    READERS[reader.name] = reader()
    return reader


def reader_of(head: bytes) -> Reader | None:
    """Return the reader of a file that begins with these bytes; None leaves it to Pillow."""
    return next((reader for reader in READERS.values() if reader.takes(head)), None)


def check_pixels(height: int, width: int, max_pixels: int) -> None:
    """Raise an UndecodableError for an image of more pixels."""
    if height * width > max_pixels:
        raise UndecodableError(f"it has {width} × {height} pixels", too_many(max_pixels))


def too_many(max_pixels: int) -> str:
    """Return what is wrong with an image of more pixels."""
    return f"more than {max_pixels:,} pixels: raise data.max_pixels"
