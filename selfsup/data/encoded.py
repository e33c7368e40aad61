"""Images that are decoded when they are read, or read from a cache of their pixels; the damaged ones are counted."""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from selfsup.data.base import DataConfig, ImageDataset, Read, SourceSplits
from selfsup.data.cache import Pixels, open_cache
from selfsup.data.decode import MAX_PIXELS, decode_image, full_shape, shape_of
from selfsup.data.form import DEPTHS, PHOTOGRAPHS, Form, UndecodableError
from selfsup.data.found import Found
from selfsup.data.memory import Memory
from selfsup.data.resident import ResidentDataset
from selfsup.data.settle import how_read, settle, what_is_lowered
from selfsup.data.targets import numbers_of
from selfsup.data.undecodable import Undecodable
from selfsup.errors import UserError
from selfsup.ragged import Images, central_parts, pack
from selfsup.settings import Sides, setting
from selfsup.shortage import machine_lacks_memory
from selfsup.types import ImageFacts, height_width
from selfsup.wording import counted

MAX_ASPECT = 4.0  # a box of a view has at most 4/3 of the shorter side: of much longer images only the middle is seen
LOOKED_AT = 32  # images whose headers are read to see the shapes of all


@dataclass(frozen=True)
class Decoding:
    """How the images of a split are decoded; each as in :class:`EncodedConfig`."""

    source_size: int | None = None
    max_undecodable: float = 0.01
    max_pixels: int = MAX_PIXELS
    form: Form = PHOTOGRAPHS
    max_aspect: float = 1.0


@dataclass
class EncodedConfig(DataConfig):
    """Settings of sources whose images are decoded from files or shards.

    Attributes:
        source_size: Length of the shorter side that each image is brought to before views are cut from it; None is 8/7
            of the longer side of ``image_size`` above 64 pixels (256 for 224), that side otherwise.
        max_aspect: Most of the longer side that is kept, from the middle, as a multiple of the shorter. 1 keeps the
            central square of each image, as runs had it that saved no such setting.
        max_undecodable: Largest fraction of images that may turn out to be undecodable, rounded up to whole images of
            a split; they are left out.
        max_pixels: Most pixels of an image that is decoded; an image takes three bytes a pixel while it is. JPEGs
            are decoded at a fraction of their size where that is enough, and count by that.
        value_range: Values that become black and white, ``[low,high]``, of images with more than 8 bits. None is the
            type's range: 0 to 65535 of 16 bits; floating-point values must lie in [0, 1] then. DICOM has a window.
        channels: Channels of the images. None makes three of photographs, which have 8 bits and are grey or colour,
            and reads other files (TIFF of several bands or pages, 16 bits, floats, ``.npy``, DICOM) as they are; 0
            reads all as they are. 1 makes grey of colour, 3 repeats grey. Files of other numbers are undecodable.
        depth: Type that pixels are kept in: ``uint8``, ``uint16`` or ``float32``. None is that of the deepest file.
            Deeper values are lowered to it only where it is set.
        channel_axis: Which axis of a ``.npy`` array ``[a,b,c]`` is that of the channels: ``first`` or ``last``. None is
            the shorter one.
        cache: Folder for the decoded and resized images, so that only the first epoch decodes; it takes a byte a
            channel and pixel (three for photographs), two of 16 bits, four of floats. None decodes in every epoch.
    """

    image_size: Sides = 224
    source_size: int | None = setting(None, least=1)
    max_aspect: float = setting(MAX_ASPECT, least=1)
    max_undecodable: float = setting(0.01, least=0, below=1)
    max_pixels: int = setting(MAX_PIXELS, least=1)
    value_range: list[float] | None = None
    channels: int | None = setting(None, least=0)
    depth: str | None = setting(None, choices=DEPTHS)
    channel_axis: str | None = setting(None, choices=("first", "last"))
    cache: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_range is not None and not (
            len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]
        ):
            raise UserError(f"data.value_range is {self.value_range}; set two numbers, the lower first, such as [0,1].")

    def decoding(self) -> Decoding:
        """Return what every dataset of the source takes."""
        return Decoding(self.source_size, self.max_undecodable, self.max_pixels, self.form(), self.max_aspect)

    def form(self) -> Form:
        """Return what the settings say of the form of the images, before one is looked at."""
        given = None if self.value_range is None else (float(self.value_range[0]), float(self.value_range[1]))
        return Form(self.channels or 3, self.depth or "uint8", self.depth is not None, given, self.channel_axis)


def _spread(values: Tensor, rows: Tensor, total: int) -> Tensor:
    """Return the values at their rows, and -1 at all others."""
    return torch.full((total,), -1, dtype=values.dtype).index_copy(0, rows, values)


def side_of_source(asked: int | None, image_size: int | Sequence[int]) -> int:
    """Return ``asked``, or by default a side that leaves views some room: 8/7 of the longer one above 64 pixels."""
    longer = max(height_width(image_size))
    return asked or (round(longer * 8 / 7) if longer > 64 else longer)


class EncodedDataset(ImageDataset):
    """A split whose images are decoded when they are read; where they lie is the subclass's part.

    Args:
        root: Folder of the source, for messages.
        count: Number of images.
        labels: int64 ``[N]``, or None.
        facts: What is known of the images.
        decoding: How they are decoded.
        keys: int64 ``[N]``, which image each is (``selfsup.data.membership``), or None.
    """

    form: Form
    resident = False

    def __init__(
        self,
        root: Path,
        count: int,
        labels: Tensor | None,
        facts: ImageFacts,
        *,
        decoding: Decoding = Decoding(),
        keys: Tensor | None = None,
    ) -> None:
        self.root = root
        self._undecodable = Undecodable(root, count, decoding.max_undecodable)
        self._pixels: Pixels | None = None
        self._memory: Memory | None = None
        self.max_pixels = decoding.max_pixels
        self.max_aspect = decoding.max_aspect
        self.form = decoding.form
        self.labels = labels
        self.index = torch.arange(count)
        self.keys = keys
        self.facts = facts
        self.source_size = side_of_source(decoding.source_size, facts.image_size)

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
        """Yield what identifies the images of the whole split: two splits that agree hold the same files."""

    def use_cache(self, folder: Path) -> None:
        """Read pixels from a cache below ``folder`` from now on; build it first where it is missing.

        Raises:
            UserError: The folder cannot be written, or more images are undecodable than allowed.
        """
        if len(self.index) != self._undecodable.total:
            raise ValueError("a part shares the cache of its whole split: call use_cache before subset")
        # what is as ever goes unsaid, so that caches written before there was a choice are still found
        chosen: dict[str, Any] = {"max_pixels": self.max_pixels} if self.max_pixels != MAX_PIXELS else {}
        chosen |= {name: value for name, value in vars(self.form).items() if value != getattr(PHOTOGRAPHS, name)}
        chosen |= {} if self.max_aspect == 1 else {"max_aspect": self.max_aspect}
        identity = chain([json.dumps(chosen).encode()] if chosen else [], self.identity())
        self._pixels = open_cache(
            folder,
            f"{self.name}-{self.split}",
            identity,
            (len(self), self.source_size),
            self._decode,
            self.shape if self.max_aspect > 1 else None,
            self.form,
        )
        self.cached = True
        self._undecodable.reasons |= self._pixels.undecodable
        self._report(self._pixels.undecodable)

    def shape(self, row: int) -> tuple[int, int]:
        """Return height and width that the image of a row is brought to, from the head of its file.

        Raises:
            UndecodableError: There is no image.
        """
        try:
            return shape_of(
                self.encoded(row), self.source_size, self.max_pixels, self.max_aspect, self.form.channel_axis
            )
        except OSError as error:
            raise UndecodableError(f"{self.row_name(row)} cannot be read: {error}") from error

    def read(self, positions: Tensor) -> Tensor:
        image, decoded, size = self.read_decodable(positions)
        if not decoded.all():
            bad = int(self.index[positions[~decoded]][0])
            raise UserError(
                f"{self.root / self.row_name(bad)} cannot be decoded ({self._why(bad)}); repair it or take it out."
            )
        return central_parts(Images(image, size), self.image_size)

    def read_decodable(self, positions: Tensor) -> Read:
        rows = self.index[positions]
        if self._memory is None:
            return self._read_source(rows)
        decoded = self._memory.fill(rows, self._read_source, f"decoding {self.split}")
        image, size = self._memory.take(rows)
        return Read(image, decoded, size)

    def _read_source(self, rows: Tensor) -> Read:
        if self._pixels is not None:
            return self._pixels.read(rows)
        images = []
        black = torch.zeros(self.form.channels, self.source_size, self.source_size, dtype=self.form.dtype)
        decoded = torch.zeros(len(rows), dtype=torch.bool)
        for slot, row in enumerate(rows.tolist()):
            image = black
            if row not in self._undecodable.reasons:
                self.note(row)
                try:
                    image = self._decode(row)
                    decoded[slot] = True
                except UndecodableError as error:
                    self._undecodable.reasons[row] = error.reason
            images.append(image)
        if not images:
            return Read(black[None][:0], decoded)
        return Read((packed := pack(images)).pixels, decoded, packed.size)

    def report_undecodable(self, positions: Tensor) -> None:
        self._report(self.index[positions].tolist())

    def undecodable(self) -> Counter[str]:
        """Return how many images have turned out to be undecodable so far, by reason."""
        return self._undecodable.counts()

    def _report(self, rows: Iterable[int]) -> None:
        self._undecodable.report({row: (self.row_name(row), self._why(row)) for row in rows})

    def _why(self, row: int) -> str:
        """Return why an image is undecodable; where another process found it out, it is tried again."""
        if row not in self._undecodable.reasons:
            self._undecodable.reasons[row] = "it could not be read before"
            try:
                self._decode(row)
            except UndecodableError as error:
                self._undecodable.reasons[row] = error.reason
        return self._undecodable.reasons[row]

    def subset(self, positions: Tensor) -> Self:
        part = copy.copy(self)  # shares the source, the cache and the record of damaged images
        part.index = self.index[positions]
        part.labels = None if self.labels is None else self.labels[positions]
        part.keys = None if self.keys is None else self.keys[positions]
        return part

    def keep_in_memory(self) -> None:
        """Keep every image that is read from now on; it is decoded, or read from the cache, once."""
        self._memory = Memory(self._undecodable.total, self.source_size, self.form)
        self.resident = True

    def first(self, order: Tensor, count: int | None = None) -> ImageDataset:
        """Return the part of the first ``count`` positions of an order.

        Raises:
            UserError: More images are undecodable than allowed.
        """
        if self._memory is None:
            return super().first(order, count)
        wanted, taken, begin = len(order) if count is None else count, torch.arange(0), 0
        while len(taken) < wanted and begin < len(order):
            some = order[begin : begin + wanted - len(taken)]
            begin += len(some)
            decoded = self._memory.fill(self.index[some], self._read_source, f"decoding {self.split}")
            self.report_undecodable(some[~decoded])
            taken = torch.cat([taken, some[decoded]])
        total = self._undecodable.total
        part = ResidentDataset(
            self._memory.images,
            None if self.labels is None else _spread(self.labels, self.index, total),
            self.facts,
            rows=self.index[taken.sort().values],
            keys=None if self.keys is None else _spread(self.keys, self.index, total),
        )
        part.targets, part.form = self.targets, self.form
        return part

    def decode_all(self) -> ImageDataset:
        """Decode every image in threads, or read the cache, and keep all in memory; undecodable ones are left out.

        Raises:
            UserError: More images are undecodable than allowed.
        """
        self.keep_in_memory()
        return self.first(torch.arange(len(self)))

    def _decode(self, row: int) -> Tensor:
        try:
            content = self.encoded(row)
            return decode_image(
                content,
                self.source_size,
                max_pixels=self.max_pixels,
                form=self.form,
                max_aspect=self.max_aspect,
            )
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            raise UndecodableError(f"{self.row_name(row)} cannot be read: {error}", reason) from error


def as_source(
    parts: Mapping[str, EncodedDataset], config: EncodedConfig, found: Found, said: Mapping[str, str]
) -> SourceSplits:
    """Let the splits of a source be read from the cache, and be kept in memory where all of them fit.

    Args:
        parts: ``train``, and ``holdout`` and ``test`` where there are some.
        config: The settings.
        found: Keeps what the splits hold.
        said: Of each split, what it was made of.
    """
    form = settle(list(parts.values()), config.form(), config.channels)
    for part in parts.values():
        part.form, part.facts = form, replace(part.facts, channels=form.channels)
    if form != PHOTOGRAPHS:
        found.notes.append(how_read(form))
    shapes = typical_shapes(list(parts.values()))
    said_of_all = what_is_cut_off(shapes, config.max_aspect), what_is_lowered(list(parts.values()), form.channel_axis)
    found.notes += [note for note in said_of_all if note is not None]
    needed = sum(len(part) * form.channels * form.bytes_a_value * part.source_size**2 for part in parts.values())
    needed = int(needed * mean_aspect(shapes, config.max_aspect))
    for split, part in parts.items():
        if config.cache is not None:
            part.use_cache(Path(config.cache).expanduser())
        if needed <= config.resident_limit_mb * 2**20:
            part.keep_in_memory()
        found.splits[split] = (len(part), said[split])
    if parts["train"].targets is not None:
        own = {split: part.targets.of(part.index) for split, part in parts.items() if part.targets is not None}
        found.targets, found.without_label, more = numbers_of(own, parts["train"].targets.names)
        found.notes += more
    classes = parts["train"].classes
    labels = {split: part.labels for split, part in parts.items() if part.labels is not None}
    if labels and classes is not None:
        found.without_label = sum(int((some < 0).sum()) for some in labels.values())
        new = {*torch.cat(list(labels.values())).tolist()} - {*labels["train"].tolist(), -1}
        if new:
            several = counted(len(new), "class has", "classes have")
            found.notes.append(f"{several} no training image, {classes[min(new)]} for one")
    return SourceSplits(parts["train"], parts.get("test"), holdout=parts.get("holdout"), found=found)


def typical_shapes(parts: Sequence[EncodedDataset]) -> list[tuple[int, int]]:
    """Return height and width of a few images, spread over all or the first block, from the heads of their files."""
    found = []
    for part in parts:
        blocks = part.blocks()  # each is a long read
        rows = part.index if blocks is None else part.index[blocks[0] == blocks[0][0]]
        for row in rows[:: -(-len(rows) // LOOKED_AT)].tolist():
            try:
                found.append(full_shape(part.encoded(row), part.max_pixels, part.form.channel_axis))
            except Exception as error:  # it is counted when it is decoded
                if machine_lacks_memory(error):
                    raise
    return found


def mean_aspect(shapes: Sequence[tuple[int, int]], max_aspect: float) -> float:
    """Return the mean of the longer side over the shorter, as far as it is kept; 1 where nothing is known."""
    aspects = [min(max_aspect, max(shape) / min(shape)) for shape in shapes]
    return sum(aspects) / len(aspects) if aspects else 1.0


def what_is_cut_off(shapes: Sequence[tuple[int, int]], max_aspect: float) -> str | None:
    """Return what to say where ``data.max_aspect`` leaves out more than half of a typical image."""
    kept = sorted((min(1.0, max_aspect * min(shape) / max(shape)), shape) for shape in shapes)
    if not kept or kept[len(kept) // 2][0] >= 0.5:
        return None
    share, (height, width) = kept[len(kept) // 2]
    return (
        f"the middle, which is what is read, keeps {share:.0%} of a typical image ({width} × {height} pixels); what "
        "lies beside it is never seen: raise data.max_aspect, or cut such images into pieces first"
    )
