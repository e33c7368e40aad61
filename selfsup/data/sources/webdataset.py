"""WebDataset shards: tar files in which the members of a sample share a name (Aizman, Maltzahn and Breuel 2019).

A tar file that is not compressed can be read at any place, so an index of where its images begin makes it as good as a
folder: any order, and resuming at any batch. The index is built once, by reading the headers of the members.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import SourceSplits
from selfsup.data.decode import is_readable
from selfsup.data.encoded import EncodedDataset
from selfsup.data.files import file_stamp
from selfsup.data.form import UndecodableError
from selfsup.data.membership import name_keys
from selfsup.data.shards import (
    Rows,
    ShardsConfig,
    find_shards,
    kept_index,
    labelling,
    load_shards,
    open_root,
    split_of_shard,
)
from selfsup.data.workers import usable_cores
from selfsup.errors import UserError, from_json
from selfsup.registry import sources
from selfsup.types import ImageFacts

INDEX_VERSION = 4  # 3 held sparse members
MOST_LABEL = 2**24  # bytes of a member that is read for a label


@dataclass
class WebDatasetConfig(ShardsConfig):
    """Settings of a folder of tar files; see ``ShardsConfig`` for their splits.

    The members ``a/0001.jpg`` and ``a/0001.cls`` are one sample. Its label is the content of ``.cls``, or the field
    ``label_field`` of ``.json``: a class number or a class name; real numbers, lists and objects are none.
    ``classes.txt`` beside the shards names the numbers.

    Attributes:
        image: Ending of the member that holds the image, such as ``jpg``; None takes the first that is an image's.
        label_field: Field of the ``.json`` members that holds the label, where there is no ``.cls``.
    """

    name: str = "webdataset"
    image: str | None = None
    label_field: str = "label"


class TarDataset(EncodedDataset):
    """Images in tar files; arguments as ``EncodedDataset``, and where each image lies.

    Args:
        shards: Paths of the tar files below ``root``.
        index: Where the images lie.
        rows: int64 ``[N]``, those of ``index`` that are of this split.
        window: ``data.shuffle_window``.
    """

    def __init__(
        self,
        root: Path,
        shards: Sequence[str],
        index: Index,
        rows: np.ndarray[Any, Any],
        labels: Tensor | None,
        facts: ImageFacts,
        *,
        window: int | None,
        **settings: Any,
    ) -> None:
        super().__init__(root, len(rows), labels, facts, **settings)
        self._shards, self._place, self._window = list(shards), index.take(rows), window

    def row_name(self, row: int) -> str:
        return f"{self._shards[self._place.shard[row]]}/{os.fsdecode(self._place.name[row])}"

    def encoded(self, row: int) -> bytes:
        place, size = self._place, int(self._place.size[row])
        with (self.root / self._shards[place.shard[row]]).open("rb") as file:
            file.seek(int(place.offset[row]))
            content: bytes = file.read(size)
        if len(content) < size:
            raise UndecodableError(f"{self.row_name(row)} is cut short")
        return content

    def identity(self) -> Iterator[bytes]:
        """Yield the shards with their sizes and times, and the places of the images."""
        yield os.fsencode(self.root.resolve())
        for shard in self._shards:
            yield os.fsencode(shard) + file_stamp(self.root / shard)
        for column in (self._place.shard, self._place.offset, self._place.size):
            yield column.tobytes()

    def blocks(self) -> tuple[Tensor, int] | None:
        if self._window is None or self.cached:  # a cache reads any order as fast
            return None
        return torch.from_numpy(self._place.shard)[self.index], self._window


@dataclass
class Index:
    """Where images lie in shards.

    Attributes:
        shard: int64 ``[N]``.
        offset, size: int64 ``[N]``, bytes from the begin of the shard.
        name: Bytes ``[N]``, the member.
        label: Bytes ``[N]``, class number or name; empty for none.
    """

    shard: np.ndarray[Any, Any]
    offset: np.ndarray[Any, Any]
    size: np.ndarray[Any, Any]
    name: np.ndarray[Any, Any]
    label: np.ndarray[Any, Any]

    def take(self, rows: np.ndarray[Any, Any]) -> Index:
        """Return the index of some images."""
        return Index(*(column[rows] for column in vars(self).values()))


@dataclass
class _Sample:
    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)


@sources.register("webdataset", WebDatasetConfig)
def webdataset(config: WebDatasetConfig) -> SourceSplits:
    """WebDataset shards, tar files of images with .cls or .json or without labels: set data.root."""
    root = open_root(config)
    shards = find_shards(
        root,
        ".tar",
        "set data.root to a folder of tar files, which must not be compressed (.tar.gz cannot be indexed).",
    )
    index = _index(root, shards, config)
    if not len(index.shard):
        raise UserError(f"data.root: the shards in {root} hold no images; set data.image to the ending of theirs.")
    field = config.label_field
    values = [os.fsdecode(label) if label else None for label in index.label.tolist()]
    asked = "label_field" if field != WebDatasetConfig.label_field else None
    labels = labelling([] if config.labelled is False else values, field, asked, _class_names(root))
    keys = _keys(shards, index)

    def build(rows: np.ndarray[Any, Any], classes: Tensor | None, facts: ImageFacts) -> TarDataset:
        window, decoding = config.shuffle_window, config.decoding()
        return TarDataset(root, shards, index, rows, classes, facts, window=window, keys=keys[rows], decoding=decoding)

    images = Rows(index.shard, keys, labels, f".cls, or {field} of .json")
    return load_shards(config, root, shards, images, build)


def _keys(shards: list[str], index: Index) -> Tensor:
    """Return which image each is: the name of the sample and the size, and whether it is of a split to test on.

    The shard itself is left out, so that images may move between shards. The size tells images apart where every shard
    counts its samples from 0.
    """
    apart = ["" if split == "train" else split for split in map(split_of_shard, shards)]
    folders = (os.fsdecode(name).removeprefix("./").rpartition("/")[::2] for name in index.name)
    samples = (f"{folder}/{base.partition('.')[0]}" for folder, base in folders)
    names = (f"{apart[shard]}:{sample}" for shard, sample in zip(index.shard, samples, strict=True))
    return name_keys(names, index.size.tolist())


def _class_names(root: Path) -> list[str] | None:
    path = root / "classes.txt"
    return path.read_text("utf-8").splitlines() if path.is_file() else None


def _index(root: Path, shards: list[str], config: WebDatasetConfig) -> Index:
    """Return the index of all shards."""
    about = f"{INDEX_VERSION} {config.image} {config.label_field}"
    return Index(**kept_index(root, shards, config, about, lambda: vars(_scan_all(root, shards, config))))


def _scan_all(root: Path, shards: list[str], config: WebDatasetConfig) -> Index:
    with ThreadPoolExecutor(usable_cores()) as pool:
        found = pool.map(lambda shard: list(_scan(root / shard, config)), shards)
        rows = [
            (number, *row)
            for number, part in enumerate(
                progress_bar(found, total=len(shards), desc="indexing", unit="shard", delay=2)
            )
            for row in part
        ]
    numbers = np.array([row[:3] for row in rows], np.int64).reshape(-1, 3).T.copy()
    return Index(*numbers, *(np.array([row[column] for row in rows], np.bytes_) for column in (3, 4)))


def _scan(path: Path, config: WebDatasetConfig) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yield offset, size, name and label of each image of a shard."""
    try:
        with tarfile.open(path, "r:") as tar:
            for sample in _samples(tar):
                readable = sorted((e for e in sample.members if is_readable(f".{e}")), key="npy".__eq__)
                ending = config.image or next(iter(readable), None)  # an array is often what lies beside an image
                if ending in sample.members:
                    image = sample.members[ending]
                    name = os.fsencode(image.name)
                    yield image.offset_data, image.size, name, os.fsencode(_label(tar, sample, config.label_field))
            _check_end(path, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"data.root: {path} is not a tar file, is compressed or is damaged ({error}); repair it or take it out."
        ) from error


def _samples(tar: tarfile.TarFile) -> Iterator[_Sample]:
    sample = _Sample("")
    for member in tar:
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        key, ending = f"{folder}/{stem}", ending.lower()
        if not member.isreg() or member.issparse() or not stem:  # a sparse one may claim any size
            continue
        if key != sample.key or ending in sample.members:
            if sample.members:
                yield sample
            sample = _Sample(key)
        sample.members[ending] = member
        tar.members = []  # type: ignore[attr-defined]  # else it keeps every member in memory
    if sample.members:
        yield sample


def _label(tar: tarfile.TarFile, sample: _Sample, label_field: str) -> str:
    """Return the label of a sample as text, "" where it has none."""
    for ending in ("cls", "json"):
        if ending in sample.members:
            if sample.members[ending].size > MOST_LABEL:
                return ""
            file = tar.extractfile(sample.members[ending])
            assert file is not None  # a regular member
            text = file.read().decode("utf-8", "replace").strip()
            if ending == "cls":
                return text
            try:
                value = from_json(text).get(label_field)
            except (ValueError, AttributeError):
                return ""
            return "" if value is None else str(value)
    return ""


def _check_end(path: Path, offset: int) -> None:
    """Tell the end of a tar file from a damage, where the standard library only stops.

    Raises:
        tarfile.ReadError: The file goes on with something that is not a member, or ends within one.
    """
    with path.open("rb") as file:
        file.seek(offset)
        follows = file.read(tarfile.BLOCKSIZE)
    if offset > path.stat().st_size or follows.strip(b"\0"):
        raise tarfile.ReadError(f"it ends or is damaged at byte {offset}")
