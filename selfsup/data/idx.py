"""The IDX format of MNIST and its successors: four magic bytes, the sizes, then the values."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from selfsup.data.base import DataConfig, SourceSplits
from selfsup.data.location import data_root, from_torchvision, missing
from selfsup.data.resident import ResidentDataset
from selfsup.errors import UserError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not: uint8 of the shape in its header.

    Raises:
        UserError: The file is not IDX of unsigned bytes, is truncated, or holds more than its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); fetch it again.") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise UserError(f"{path} is not an IDX file of unsigned bytes; fetch it again or set data.root.")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise UserError(f"{path} is truncated within its header; fetch it again.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise UserError(
            f"{path} holds {len(content) - start} values where its header says {math.prod(shape)}; fetch it again."
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(shape)


def idx_splits(
    config: DataConfig, torchvision_name: str, classes: tuple[str, ...], folders: Sequence[Path] = ()
) -> SourceSplits:
    """Load the four files of an MNIST-like source.

    They are looked for in ``data.root`` itself, in torchvision's ``<name>/raw`` below it, then, without a
    ``data.root``, in ``folders``.

    Raises:
        UserError: Files are missing or damaged.
    """
    root = data_root(config)
    places = [root, root / torchvision_name / "raw", *(() if config.root else folders)]
    if config.download and not any(_find(place, "train-images-idx3-ubyte") for place in places):
        import torchvision

        from_torchvision(config, getattr(torchvision.datasets, torchvision_name))
    for place in places:
        if _find(place, "train-images-idx3-ubyte"):
            break
    else:
        raise missing(config)

    def split(name: str, prefix: str) -> ResidentDataset:
        images = _read_named(place, f"{prefix}-images-idx3-ubyte")
        labels = _read_named(place, f"{prefix}-labels-idx1-ubyte")
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(f"The {name} images and labels in {place} do not belong together; fetch them again.")
        return ResidentDataset(
            images[:, None],
            labels.long(),
            config.facts(name, channels=1, classes=classes),
        )

    return SourceSplits(train=split("train", "train"), test=split("test", "t10k"))


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_named(folder: Path, name: str) -> Tensor:
    path = _find(folder, name)
    if path is None:
        raise UserError(f"{folder} holds no {name} (.gz or not); put it there, or set data.root to a complete folder.")
    return read_idx(path)
