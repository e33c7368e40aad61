"""In which form the images of a source are read: what the settings say, else what the files hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.bits import HEAD, bits_of
from selfsup.data.decode import look
from selfsup.data.form import DEPTHS, Form, Kind
from selfsup.data.workers import usable_cores
from selfsup.errors import UserError
from selfsup.shortage import machine_lacks_memory

AS_FILES = 0  # of data.channels: grey photographs, too, keep their one channel

LOOKED_AT = 32  # images of a split whose heads are read to see the form of all


class Part(Protocol):
    """What is needed of a split of encoded images."""

    index: Tensor

    def __len__(self) -> int: ...

    def row_name(self, row: int) -> str: ...

    def encoded(self, row: int) -> bytes | Path: ...

    def blocks(self) -> tuple[Tensor, int] | None: ...


def settle(parts: Sequence[Part], wanted: Form, channels: int | None) -> Form:
    """Return the form of the images of a source, from the heads of a few files, spread over all.

    Photographs, which have 8 bits, become three channels. Where one of the images that are looked at is no
    photograph, they have the channels of the files, and the type of the deepest.

    Args:
        parts: Its splits.
        wanted: What the settings say; its depth holds where it lowers.
        channels: ``data.channels``.

    Raises:
        UserError: The files have different numbers of channels, and no setting says which to read.
    """
    looked_at = [_kind(part, row, wanted.channel_axis) for part, row in _some(parts)]
    kinds = [kind for kind in looked_at if kind is not None]
    photographs = all(kind.photograph for kind in kinds)
    depth = wanted.depth if wanted.lowers else max((kind.depth for kind in kinds), key=DEPTHS.index, default="uint8")
    if channels:
        return replace(wanted, channels=channels, depth=depth)
    if not kinds or (photographs and channels is None):
        return replace(wanted, channels=3, depth=depth)
    found = {kind.channels for kind in kinds}
    if len(found) > 1:
        raise _mixed(parts, wanted)
    return replace(wanted, channels=found.pop(), depth=depth)


def how_read(form: Form) -> str:
    """Return what to say of images that are not read as photographs: channels, type and range."""
    ends = {"uint8": "0 and 255", "uint16": "0 and 65535", "float32": "0 and 1"}[form.depth]
    if form.value_range is not None:
        ends = " and ".join(f"{end:g}" for end in form.value_range) + " (data.value_range)"
    window = " (of DICOM at the ends of its window)" if form.depth == "float32" and form.value_range is None else ""
    return f"images are read as {form}, black and white at {ends}{window}"


def what_is_lowered(parts: Sequence[Part], channel_axis: str | None) -> str | None:
    """Return what to say where files hold more bits than their decoder gives, by the heads of a few; else None."""
    looked_at = [(part, row) for part, row in _some(parts) if _bits(part, row) > 8]
    deep = [(part, row) for part, row in looked_at if (kind := _kind(part, row, channel_axis)) and kind.photograph]
    if not deep:
        return None
    part, row = deep[0]
    return (
        f"{len(deep):,} of {len(_some(parts)):,} images that were looked at have colours of more than 8 bits, "
        f"{part.row_name(row)} for one, and are read with 8, which is all that Pillow gives of their type; as PNG or "
        "TIFF they keep all"
    )


def _some(parts: Sequence[Part]) -> list[tuple[Part, int]]:
    """Return a few images of each split, spread over all."""
    # storage that is read in blocks costs a block for each
    some = [p.index[:1] if p.blocks() is not None else p.index[:: -(-len(p) // LOOKED_AT)] for p in parts]
    return [(part, row) for part, rows in zip(parts, some, strict=True) for row in rows.tolist()]


def _bits(part: Part, row: int) -> int:
    try:
        content = part.encoded(row)
        if isinstance(content, bytes):
            return bits_of(content[:HEAD])
        with content.open("rb") as file:
            return bits_of(file.read(HEAD))
    except Exception as error:  # as of _kind
        if machine_lacks_memory(error):
            raise
        return 8


def _kind(part: Part, row: int, channel_axis: str | None) -> Kind | None:
    """Return what a file holds; None where it cannot be read, which is counted when it is decoded."""
    try:
        return look(part.encoded(row), channel_axis)
    except Exception as error:  # damaged files make the decoders raise nearly anything
        if machine_lacks_memory(error):
            raise
        return None


def _mixed(parts: Sequence[Part], wanted: Form) -> UserError:
    """Return the error for files of different channels, with the number of each."""
    items = [(part, row) for part in parts for row in part.index.tolist()]
    counts: Counter[int] = Counter()
    examples: dict[int, str] = {}
    with ThreadPoolExecutor(usable_cores()) as pool:
        kinds = pool.map(lambda item: _kind(item[0], item[1], wanted.channel_axis), items)
        for (part, row), kind in zip(
            items, progress_bar(kinds, "channels", len(items), unit="image", delay=2), strict=True
        ):
            if kind is not None:
                counts[kind.channels] += 1
                examples.setdefault(kind.channels, part.row_name(row))
    said = [f"{count:,} of {channels} ({examples[channels]} for one)" for channels, count in counts.most_common()]
    grey = "; 3 reads grey as colour, and 1 colour as grey" if {1, 3} <= set(counts) else ""
    return UserError(
        f"data.channels: the images have different numbers of channels, {', '.join(said)}; set "
        f"data.channels={counts.most_common(1)[0][0]} to read those and leave out the others, as many as "
        f"data.max_undecodable allows{grey}."
    )
