"""Images in Parquet files, as datasets of the Hugging Face Hub are stored."""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.data.base import SourceSplits
from selfsup.data.encoded import EncodedDataset
from selfsup.data.files import file_stamp
from selfsup.data.form import UndecodableError
from selfsup.data.membership import as_keys, content_key
from selfsup.data.shards import (
    Labelling,
    Rows,
    ShardsConfig,
    find_shards,
    kept_index,
    labelling,
    load_shards,
    open_root,
)
from selfsup.data.targets import CLASSES, KINDS, Asked, Targets, decide
from selfsup.data.workers import usable_cores
from selfsup.errors import UserError, from_json, packages, reason_of
from selfsup.registry import sources
from selfsup.settings import TextOrList, setting
from selfsup.types import ImageFacts

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")
INDEX_VERSION = 1
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls", "class")


@dataclass
class ParquetConfig(ShardsConfig):
    """Settings of a folder of Parquet files; see ``ShardsConfig`` for their splits.

    Parquet is read in groups of rows, so that a shuffle of all images would read a group for every image. By default
    the groups are shuffled, and then the images of as many groups as hold ``shuffle_window`` images; with ``cache``
    all images are shuffled with each other.

    Attributes:
        image_column: Column of encoded images, binary or a struct with a field ``bytes``; None finds it.
        label_column: Column of labels, or a list of columns; None takes ``label`` or the like where there is one that
            holds any.
        targets: What it holds: ``classes``, ``multilabel`` (a list of names or numbers a row, separated names, or
            several columns of 0 and 1) or ``real`` (numbers). None decides, see
            ``selfsup.data.targets.decide``, and says what.
        label_separator: What stands between the names in a cell; None takes ``|`` and ``;``.
    """

    name: str = "parquet"
    shuffle_window: int | None = setting(1024, least=1)
    image_column: str | None = None
    label_column: Annotated[Any, TextOrList] = None
    targets: str | None = setting(None, choices=KINDS)
    label_separator: str | None = None


class Groups:
    """The row groups of several files, of which those read last stay in memory.

    Args:
        files: Paths of the files.
        column: Column of the images.
        fields: What to read of it: the column, or one field of a struct.
        held: Images that stay in memory, beside the group in use.
    """

    def __init__(self, files: Sequence[Path], column: str, fields: str, held: int) -> None:
        self.files, self.column, self.fields, self.held = list(files), column, fields, held
        _, parquet = _pyarrow()
        counts, places = [], []
        for number, path in enumerate(self.files):
            metadata = parquet.read_metadata(path)
            counts += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            places += [(number, group) for group in range(metadata.num_row_groups)]
        self.places = np.array(places, np.int64).reshape(-1, 2)
        self.begins = np.concatenate([[0], np.cumsum(np.array(counts, np.int64))])
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def group_of(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the group of each row."""
        found: np.ndarray[Any, Any] = np.searchsorted(self.begins, rows, side="right") - 1
        return found

    def index(self) -> dict[str, np.ndarray[Any, Any]]:
        """Read every image once, and return ``keys`` int64 ``[N]`` of their content and ``filled`` bool ``[N]``."""

        def read(group: int) -> list[bytes | None]:
            values = (_content(value.as_py()) for value in self._read(group))
            return [None if value is None else content_key(value) for value in values]

        with ThreadPoolExecutor(usable_cores()) as pool:
            found = pool.map(read, range(len(self.places)))
            bar = progress_bar(found, total=len(self.places), desc="indexing", unit="group", delay=2)
            hashes = [value for part in bar for value in part]
        keys = as_keys([bytes(8) if value is None else value for value in hashes])
        return {"keys": keys.numpy(), "filled": np.array([value is not None for value in hashes], bool)}

    def value(self, row: int) -> Any:
        """Return what a row holds: bytes, a struct as a dictionary, or None."""
        group = int(self.group_of(np.array(row)))
        with self._lock:
            if group not in self._open:
                self._open[group] = self._read(group)
            self._open.move_to_end(group)
            values = self._open[group]
            while len(self._open) > 2 and sum(map(len, self._open.values())) - len(values) > self.held:
                self._open.popitem(last=False)
        return values[row - int(self.begins[group])].as_py()

    def _read(self, group: int) -> Any:
        _, parquet = _pyarrow()
        number, place = self.places[group]
        with parquet.ParquetFile(self.files[number]) as file:
            return file.read_row_group(int(place), columns=[self.fields], use_threads=False)[self.column]


class ParquetDataset(EncodedDataset):
    """Images in Parquet files; arguments as ``EncodedDataset``, and the groups that hold them.

    Args:
        shards: Paths of the files below ``root``.
        groups: Their row groups.
        rows: int64 ``[N]``, the rows over all files that are of this split.
        window: ``data.shuffle_window``.
    """

    def __init__(
        self,
        root: Path,
        shards: Sequence[str],
        groups: Groups,
        rows: np.ndarray[Any, Any],
        labels: Tensor | None,
        facts: ImageFacts,
        *,
        window: int | None,
        **settings: Any,
    ) -> None:
        super().__init__(root, len(rows), labels, facts, **settings)
        self._shards, self._groups, self._rows, self._window = list(shards), groups, rows, window

    def row_name(self, row: int) -> str:
        place = int(self._rows[row])
        file = int(self._groups.places[self._groups.group_of(np.array(place)), 0])
        begin = self._groups.begins[np.searchsorted(self._groups.places[:, 0], file)]
        return f"{self._shards[file]}/{place - int(begin)}"

    def encoded(self, row: int) -> bytes:
        arrow, _ = _pyarrow()
        try:
            value = self._groups.value(int(self._rows[row]))
        except (arrow.ArrowException, OSError) as error:
            raise UndecodableError(f"{self.row_name(row)} cannot be read: {error}") from error
        content = _content(value)
        if content is None:
            raise UndecodableError(f"{self.row_name(row)} holds no image, only its path or nothing")
        return content

    def identity(self) -> Iterator[bytes]:
        """Yield the files with their sizes and times, the column and the rows."""
        yield os.fsencode(self.root.resolve())
        yield self._groups.fields.encode()
        for shard in self._shards:
            yield os.fsencode(shard) + file_stamp(self.root / shard)
        yield self._rows.tobytes()

    def blocks(self) -> tuple[Tensor, int] | None:
        if self._window is None or self.cached:  # a cache reads any order as fast
            return None
        return torch.from_numpy(self._groups.group_of(self._rows))[self.index], self._window


def _content(value: Any) -> bytes | None:
    """Return the image in a value of the column, or None."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) and content else None


@sources.register("parquet", ParquetConfig)
def parquet(config: ParquetConfig) -> SourceSplits:
    """Parquet files of images, as the Hugging Face Hub stores datasets: set data.root; needs pyarrow."""
    arrow, reader = _pyarrow()
    root = open_root(config)
    shards = find_shards(
        root,
        ".parquet",
        "set data.root to a folder of Parquet files (what save_to_disk wrote becomes one by to_parquet).",
    )

    def read(name: str) -> list[Any]:
        tables = (reader.read_table(root / shard, columns=[name], partitioning=None) for shard in shards)
        return [value for table in tables for value in table[name].to_pylist()]

    try:
        schema = reader.read_schema(root / shards[0])
        column, fields = _image_column(arrow, schema, config.image_column)
        groups = Groups([root / shard for shard in shards], column, fields, config.shuffle_window or 0)
        index = kept_index(root, shards, config, f"{INDEX_VERSION} {fields}", groups.index)
        label, labels, targets = _labels(schema, config, read)
    except (arrow.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"data.root: a file in {root} is not a Parquet file, is damaged, or has other columns than {shards[0]} "
            f"({reason_of(error)}); repair it or take it out."
        ) from error
    _check_filled(root, index["filled"], column, config.max_undecodable)
    keys = torch.from_numpy(index["keys"])
    shard_of = groups.places[groups.group_of(np.arange(groups.begins[-1])), 0]

    def build(rows: np.ndarray[Any, Any], classes: Tensor | None, facts: ImageFacts) -> ParquetDataset:
        window, decoding = config.shuffle_window, config.decoding()
        return ParquetDataset(
            root, shards, groups, rows, classes, facts, window=window, keys=keys[rows], decoding=decoding
        )

    images = Rows(shard_of, keys, labels, f"the column {label}", targets)
    return load_shards(config, root, shards, images, build)


def _image_column(arrow: Any, schema: Any, wanted: str | None) -> tuple[str, str]:
    """Return the column and what to read of it."""

    def fields(name: str) -> str | None:
        kind = schema.field(name).type
        if arrow.types.is_struct(kind):
            return f"{name}.bytes" if kind.get_field_index("bytes") >= 0 else None
        return name if arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind) else None

    found = {name: place for name in schema.names if (place := fields(name)) is not None}
    if wanted is not None and wanted not in found:
        raise UserError(
            f"data.image_column: {wanted} holds no encoded images; columns that do: {', '.join(found) or 'none'}."
        )
    column = wanted or next((name for name in IMAGE_COLUMNS if name in found), None)
    if column is None:
        if len(found) != 1:
            raise UserError(
                f"data.image_column is not set and {', '.join(found) or 'no column'} could hold the images; set it to "
                f"one of the columns ({', '.join(schema.names)}) that is binary or has a field bytes."
            )
        column = next(iter(found))
    return column, found[column]


def _labels(
    schema: Any, config: ParquetConfig, read: Callable[[str], list[Any]]
) -> tuple[str | None, Labelling, Targets | None]:
    """Return the column or columns of labels, or None, and what they hold; what is only called so may be left out."""
    asked = Asked.by(config.targets, config.label_column, config.label_separator)
    for name in asked.columns:
        if name not in schema.names:
            raise UserError(f"data.label_column: there is no {name}; the columns are {', '.join(schema.names)}.")
    nothing, notes = Labelling([], None, []), list[str]()
    if config.labelled is False:
        return None, nothing, None
    called = [name for name in LABEL_COLUMNS if name in schema.names]
    if not asked.columns and asked.kind in (None, CLASSES):  # a column of classes goes before one of anything else
        for name in called:
            found = labelling(read(name), name, None, _class_names(schema, name))
            if found.values:
                return name, replace(found, notes=notes), None
            notes += found.notes
        called = called if asked.kind is None else []
    for names in [asked.columns] if asked.columns else [(name,) for name in called]:
        written = ", ".join(names)
        classes = _class_names(schema, names[0])
        values = {name: [_by_name(value, classes or ()) for value in read(name)] for name in names}
        rows = [f"row {place}" for place in range(len(values[names[0]]))]
        try:
            decided = decide(values, asked, f"data.label_column: {written}", rows)
        except UserError:
            if asked.columns or asked.kind is not None:
                raise
            continue
        if decided.kind == CLASSES:
            return written, labelling(read(names[0]), written, "label_column", classes), None
        targets = decided.targets(decided.values)
        return f"{written}, {decided.why}", replace(nothing, notes=decided.notes), targets
    return None, replace(nothing, notes=notes), None


def _by_name(value: Any, classes: Sequence[str]) -> Any:
    """Return the names of a list of class numbers; anything else stays."""
    if not isinstance(value, list) or not all(isinstance(one, int) and 0 <= one < len(classes) for one in value):
        return value
    return [classes[one] for one in value]


def _check_filled(root: Path, filled: np.ndarray[Any, Any], column: str, allowed: float) -> None:
    """Tell rows that only say where an image lies from damaged images.

    Raises:
        UserError: More rows have no image in them than may be undecodable.
    """
    empty = int((~filled).sum())
    if empty > math.ceil(allowed * len(filled)):
        raise UserError(
            f"data.root: {empty} of the {len(filled)} rows in {root} have no image in the column {column}, only its "
            "path or nothing; write the files' content into them (datasets.table.embed_table_storage; docs/data.md "
            "shows how), or read the files themselves with data=image_folder."
        )


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    """Return the names that the Hub's metadata gives the class numbers, of which a row may have one or a list."""
    try:
        feature = from_json(schema.metadata[b"huggingface"])["info"]["features"][label]
        names = feature.get("feature", feature)["names"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return names if isinstance(names, list) else None


def _pyarrow() -> list[Any]:
    return packages("data=parquet", "parquet", "pyarrow", "pyarrow.parquet")
