"""Features of images as a file: NumPy or Parquet, with the path and the place of each image."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from selfsup.bars import progress_bar
from selfsup.config import EvaluateConfig
from selfsup.data import load_splits
from selfsup.data.base import ImageDataset
from selfsup.data.files import FileDataset
from selfsup.data.workers import worker_count
from selfsup.engine.evaluation import announce, announce_found, choose_device, opened_evaluation
from selfsup.errors import UserError, from_json, packages, reason_of
from selfsup.eval import FeatureSet, extract_features
from selfsup.eval.subject import crop_words
from selfsup.types import as_size
from selfsup.writing import check_output, writing

logger = logging.getLogger(__name__)

#: Images whose features are in memory at a time; 64 MB at 2048 dimensions.
BLOCK = 8192


@dataclass(frozen=True)
class Embeddings:
    """What :func:`embed` wrote.

    Attributes:
        features: Features, labels (None when there are none) and indices, as ``extract_features`` gives them.
        split: ``[N]``, the part of the source each image is of.
        paths: ``[N]``, the file of each image (``data.root`` and what follows), or None for sources without files.
        classes: Names of the labels, or None.
        about: Checkpoint, data, size, crop and normalisation.
    """

    features: FeatureSet
    split: list[str]
    paths: list[str] | None
    classes: list[str] | None
    about: dict[str, Any]


def embed(what: EvaluateConfig | Sequence[str], out: str | Path, progress: bool = True) -> tuple[Path, int]:
    """Write the features of every image of a source to a file, and return the file and the number of images.

    Nothing is set aside: a folder is embedded whole. Images are decoded as they are needed and features are written
    in blocks, so that memory holds the features of a block, and of all images the paths, labels and indices alone.
    Files that cannot be decoded are left out, up to ``data.max_undecodable``.

    Args:
        what: Network and data, as for ``evaluate``.
        out: ``.npz`` (arrays ``features`` float32 ``[N,D]``, ``index``, ``split``, and ``labels``, ``classes`` and
            ``paths`` where there are some) or ``.parquet`` (these as columns; the extra ``parquet``). It must not
            exist.
        progress: Show a progress bar.

    Raises:
        UserError: Another ending, something at ``out`` already, no room for it, a package that is missing, or as
            ``evaluate``. Features that were computed before a failure are kept in ``out`` with ``-part`` in its name.
    """
    target = Path(out)
    if target.suffix not in _WRITERS:
        raise UserError(f"--out: {target.name} must end in {' or '.join(_WRITERS)}.")
    if target.exists():
        raise UserError(f"--out: {target} exists and is not overwritten; choose another name.")
    if target.suffix == ".parquet":
        _pyarrow()  # whether it is there
    check_output(target, "--out")
    config, opened = opened_evaluation(what)
    if opened.network is None:
        raise UserError("checkpoint: raw_pixels has no network; embed with a run, timm:NAME or another network.")
    whole: dict[str, Any] = {"holdout": 0.0, "resident_limit_mb": 0, "test_fraction": 0.0}
    settings = {field.name for field in dataclasses.fields(config.data)}
    data = dataclasses.replace(config.data, **{k: v for k, v in whole.items() if k in settings})
    splits = load_splits(data)
    if progress:
        announce(opened, splits.train.facts)
        announce_found(data, opened, splits)
    # a hold-out of its own is one of the source's splits: nothing is drawn, as data.holdout is 0
    parts = [part for part in (splits.pretrain, splits.holdout, splits.test) if part is not None and len(part)]
    # once as rows, and again in the archive, which begins with their number
    copies = 2 if target.suffix == ".npz" else 1
    check_output(target, "--out", 4 * copies * (opened.dim or 0) * sum(map(len, parts)))
    backbone = opened.network.to(choose_device(config.accelerator))

    statistics = opened.normalization or splits.train.normalization
    about: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        "epoch": opened.epochs,
        "data": data.name,
        "image_size": data.image_size,
        "crop": crop_words(as_size(data.image_size), None),
        "mean": list(statistics.mean),
        "std": list(statistics.std),
    } | opened.facts
    classes = parts[0].classes
    labelled = any(part.labels is not None for part in parts)
    count = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".embedding-") as folder,
        progress_bar(total=sum(map(len, parts)), desc="embedding", unit="image", disable=not progress) as bar,
    ):
        draft = Path(folder) / target.name
        with writing(target):
            writer = _WRITERS[target.suffix](draft, about, None if classes is None else list(classes))
        try:
            for block in itertools.chain.from_iterable(map(_blocks, parts)):
                # the device is the backbone's: None leaves it there between blocks
                found = extract_features(
                    backbone, block, batch_size=config.eval.batch_size, workers=worker_count(data), progress=False
                )
                if labelled and found.labels is None:
                    found = dataclasses.replace(found, labels=torch.full_like(found.index, -1))
                with writing(target):
                    writer.add(found, [block.split] * len(found), _paths(block, found))
                count += len(found)
                bar.update(len(block))
        except BaseException as error:
            if not count:
                raise
            kept = target.with_stem(f"{target.stem}-part")
            with contextlib.suppress(OSError):  # such as a full disk
                writer.close()
                os.replace(draft, kept)
                note = f"The features of the first {count} of {sum(map(len, parts))} images are kept in {kept}."
                if isinstance(error, UserError):
                    raise UserError(f"{error} {note}") from error
                logger.warning(note)
            raise
        with writing(target):
            writer.close()
            os.replace(draft, target)
    return target, count


def read_embeddings(path: str | Path) -> Embeddings:
    """Read a file that :func:`embed` wrote.

    Raises:
        UserError: It is missing, damaged or another file, or the package that reads it is missing.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise UserError(f"{path} must end in {' or '.join(_READERS)}.")
    try:
        return _READERS[path.suffix](path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a file of embeddings: {reason_of(error)}") from error


def _blocks(part: ImageDataset) -> Iterator[ImageDataset]:
    # the rest joins the last block: one damaged file alone would be a block without features
    starts = list(range(0, max(1, len(part) - BLOCK + 1), BLOCK))
    for start, end in zip(starts, [*starts[1:], len(part)], strict=True):
        yield part.subset(torch.arange(start, end))


def _paths(block: ImageDataset, found: FeatureSet) -> list[str] | None:
    if not isinstance(block, FileDataset):
        return None
    position = {row: place for place, row in enumerate(block.index.tolist())}  # damaged files are not in ``found``
    return [str(block.path(position[row])) for row in found.index.tolist()]


class _Writer(Protocol):
    def __init__(self, draft: Path, about: dict[str, Any], classes: list[str] | None) -> None: ...

    def add(self, found: FeatureSet, split: list[str], paths: list[str] | None) -> None: ...

    def close(self) -> None: ...


class _NpzWriter:
    """Features go to a plain file as they come; their number, which the archive begins with, is known at the end."""

    def __init__(self, draft: Path, about: dict[str, Any], classes: list[str] | None) -> None:
        self.draft, self.about, self.classes = draft, about, classes
        self.rows = draft.with_name("rows")
        self.file = self.rows.open("wb")
        self.columns: dict[str, list[Any]] = {"index": [], "split": [], "labels": [], "paths": []}
        self.dim = 0

    def add(self, found: FeatureSet, split: list[str], paths: list[str] | None) -> None:
        self.dim = found.features.shape[1]
        self.file.write(found.features.numpy().astype("<f4", order="C", copy=False).data)
        self.columns["index"] += found.index.tolist()
        self.columns["split"] += split
        self.columns["labels"] += [] if found.labels is None else found.labels.tolist()
        self.columns["paths"] += paths or []

    def close(self) -> None:
        self.file.close()
        count = len(self.columns["index"])
        with zipfile.ZipFile(self.draft, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("features.npy", "w", force_zip64=True) as entry, self.rows.open("rb") as rows:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, self.dim)}
                np.lib.format.write_array_header_2_0(entry, header)
                shutil.copyfileobj(rows, entry, 2**24)
            arrays = {name: np.array(column) for name, column in self.columns.items() if column}
            arrays["about"] = np.array(json.dumps(self.about))
            if self.classes is not None:
                arrays["classes"] = np.array(self.classes)
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)


def _read_npz(path: Path) -> Embeddings:
    with np.load(path, allow_pickle=False) as archive:
        labels = torch.from_numpy(archive["labels"]) if "labels" in archive else None
        return Embeddings(
            FeatureSet(torch.from_numpy(archive["features"]), labels, torch.from_numpy(archive["index"])),
            archive["split"].tolist(),
            archive["paths"].tolist() if "paths" in archive else None,
            archive["classes"].tolist() if "classes" in archive else None,
            from_json(str(archive["about"])),
        )


class _ParquetWriter:
    """A group of rows for every block."""

    def __init__(self, draft: Path, about: dict[str, Any], classes: list[str] | None) -> None:
        self.arrow, self.parquet = _pyarrow()
        self.draft = draft
        self.metadata = {"selfsup": json.dumps({"about": about, "classes": classes})}
        self.file: Any = None

    def add(self, found: FeatureSet, split: list[str], paths: list[str] | None) -> None:
        columns: dict[str, Any] = {"index": found.index.numpy(), "split": split}
        if paths is not None:
            columns["path"] = paths
        if found.labels is not None:
            columns["label"] = found.labels.numpy()
        flat = self.arrow.array(found.features.numpy().reshape(-1))
        columns["features"] = self.arrow.FixedSizeListArray.from_arrays(flat, found.features.shape[1])
        table = self.arrow.table(columns).replace_schema_metadata(self.metadata)
        if self.file is None:
            self.file = self.parquet.ParquetWriter(self.draft, table.schema)
        self.file.write_table(table)

    def close(self) -> None:
        self.file.close()


def _read_parquet(path: Path) -> Embeddings:
    arrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
    except arrow.ArrowException as error:
        raise UserError(f"{path} is not a Parquet file, or is truncated.") from error
    stored = from_json(table.schema.metadata[b"selfsup"])

    def column(name: str) -> Any:
        return table[name].combine_chunks() if name in table.column_names else None

    features = column("features")
    width = features.type.list_size
    labels, paths = column("label"), column("path")
    return Embeddings(
        FeatureSet(
            torch.from_numpy(features.flatten().to_numpy().reshape(-1, width).copy()),
            None if labels is None else torch.from_numpy(labels.to_numpy().copy()),
            torch.from_numpy(column("index").to_numpy().copy()),
        ),
        column("split").to_pylist(),
        None if paths is None else paths.to_pylist(),
        stored["classes"],
        stored["about"],
    )


def _pyarrow() -> list[Any]:
    return packages("A .parquet file", "parquet", "pyarrow", "pyarrow.parquet")


_WRITERS: dict[str, type[_Writer]] = {".npz": _NpzWriter, ".parquet": _ParquetWriter}
_READERS = {".npz": _read_npz, ".parquet": _read_parquet}
