"""What sources in shards have in common: their settings, which shard is of which split, and classes from labels."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsup.data.base import SourceSplits
from selfsup.data.cache import digest, locked
from selfsup.data.divide import CALLED, DividedConfig, Division, choose, divide_by_choice
from selfsup.data.encoded import EncodedDataset, as_source
from selfsup.data.files import file_stamp
from selfsup.data.found import NO_SPLIT, Found
from selfsup.data.location import one_root
from selfsup.data.splits import draw_test, split_of
from selfsup.data.targets import Targets, tidy, why_no_classes
from selfsup.errors import UserError
from selfsup.settings import setting
from selfsup.types import ImageFacts

WORD = re.compile(r"(?:^|[-_.])([a-z]+)(?=[-_.\d]|$)", re.IGNORECASE)
MOST_CLASSES = 10**6

logger = logging.getLogger(__name__)


@dataclass
class ShardsConfig(DividedConfig):
    """Settings of a folder of shards.

    A shard is of the split that its name or a folder above it says: ``train-00000.tar``, ``data/test-00000.parquet``,
    ``val/17.tar`` (``training``, ``testing``, ``valid`` and ``validation`` as well, in any case). Where no name says
    ``train``, all shards are one split, of which ``test_fraction`` is set aside by a fixed draw of images. What is
    called ``val`` is tested on, or chosen on where there is ``test`` as well. ``splits`` names shards or their folders.

    Attributes:
        shuffle_window: None shuffles all images with each other. A number shuffles whole shards (of Parquet: groups
            of rows) and then the images of as many of them as hold so many images, which the disk reads in long runs.
    """

    shuffle_window: int | None = setting(None, least=1)


def open_root(config: ShardsConfig) -> Path:
    """Return ``data.root``.

    Raises:
        UserError: It is not a folder, or another setting is impossible.
    """
    root = one_root(config)
    if root is None:
        raise UserError("data.root is not set; set it to the folder of the shards.")
    if not root.is_dir():
        raise UserError(f"data.root: there is no folder {root}; set data.root to the folder of the shards.")
    return root


def find_shards(root: Path, ending: str, others: str) -> list[str]:
    """Return the shards below a folder, relative to it and sorted; hidden ones are left out.

    Args:
        root: The folder.
        ending: What their names end with.
        others: What to say of a folder that has none.

    Raises:
        UserError: There are none.
    """
    found = sorted(path.relative_to(root) for path in root.rglob(f"*{ending}") if path.is_file())
    names = [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]
    if not names:
        raise UserError(f"data.root: {root} holds no {ending} files; {others}")
    return names


def kept_index(
    root: Path,
    shards: Sequence[str],
    config: ShardsConfig,
    about: str,
    build: Callable[[], dict[str, np.ndarray[Any, Any]]],
) -> dict[str, np.ndarray[Any, Any]]:
    """Return what ``build`` finds out about shards: kept in ``data.cache`` or the user's folder, or else built.

    Args:
        root, shards: The shards; where one of them has changed, the index is built again.
        config: The settings, of which only ``cache`` matters here.
        about: What else the index depends on.
        build: Returns arrays by name.
    """
    stamps = (os.fsencode(shard) + file_stamp(root / shard) for shard in shards)
    key = digest([f"{about} {root.resolve()}".encode(), *stamps])
    kept = Path(config.cache or "~/.cache/selfsup/index").expanduser() / f"{config.name}-{key}.npz"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with locked(kept.with_suffix(".lock")):
            index = _read_index(kept)
            if index is None:
                index = build()
                draft = kept.with_suffix(f".{os.getpid()}.draft")
                with draft.open("wb") as file:
                    np.savez(file, **index)  # type: ignore[arg-type]  # an array's name is no other argument's
                draft.replace(kept)
            return index
    except OSError as error:
        logger.warning("the index of the shards cannot be kept in %s (%s) and is built again", kept.parent, error)
        return build()


def _read_index(path: Path) -> dict[str, np.ndarray[Any, Any]] | None:
    """Return a kept index; None where there is none that is whole."""
    try:
        with np.load(path, allow_pickle=False) as columns:
            return dict(columns)
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def split_of_shard(shard: str) -> str:
    """Return the split that a folder or the name of a shard says, or "" where they say none."""
    words = (word for part in shard.split("/") for word in WORD.findall(part))
    return next(filter(None, map(split_of, words)), "")


def divide_shards(shards: Sequence[str], config: ShardsConfig) -> tuple[Division, dict[str, list[int]]]:
    """Return what said of which split each shard is, and the shards of each split by their place.

    Raises:
        UserError: A split that is asked for is not there.
    """
    if config.splits is not None:
        division = divide_by_choice(shards, config.splits)
        return division, choose(division, config)
    named = [split_of_shard(shard) for shard in shards]
    if "train" in named:
        first = {split: shards[named.index(split)] for split in sorted(set(named) - {""})}
        said = {split: f"shards named as {shard}" for split, shard in first.items()}
        division = Division([split or None for split in named], list(shards), said)
    elif config.test_split is not None:
        raise UserError(
            f"data.test_split is {config.test_split} but no shard in data.root is named train; name the shards "
            "after their splits, or set data.test_split=null to draw test images."
        )
    else:
        division = Division(["train"] * len(shards), list(shards), {"train": "all shards"})
    return division, choose(division, config)


@dataclass(frozen=True)
class Labelling:
    """Labels of images as a source says them.

    Attributes:
        values: Of each image its label, as ``classes_of`` takes them; empty where there are none.
        class_names: Names of class numbers, where the source has them.
        notes: What a person should know.
    """

    values: Sequence[Any]
    class_names: Sequence[str] | None
    notes: list[str]


def labelling(values: Sequence[Any], name: str, setting: str | None, class_names: Sequence[str] | None) -> Labelling:
    """Return what a column or a field holds, and nothing but a note where that is not a class.

    Args:
        values: Of each image a number, a name, None or anything else.
        name: The column or the field.
        setting: The setting of ``data`` that asked for it; None where it was only found.
        class_names: Names of class numbers, where the source has them.

    Raises:
        UserError: It was asked for and holds no classes.
    """
    reason = why_no_classes(values, counted=setting is None and class_names is None)
    if reason is None:
        return Labelling(list(map(tidy, values)), class_names, [])
    if setting is not None:
        raise UserError(f"data.{setting}: {name} holds no classes: {reason}; set it to one that does, or leave it out.")
    return Labelling([], None, [f"{name} holds no classes and is left out: {reason}"])


@dataclass
class Rows:
    """The images in shards, in the order of these.

    Attributes:
        shard: int ``[N]``, the shard of each.
        keys: int64 ``[N]``, which image each is (``selfsup.data.membership``).
        labels: Their labels.
        labels_from: Where the labels come from, in words.
        targets: What they have in place of labels, or None.
    """

    shard: np.ndarray[Any, Any]
    keys: Tensor
    labels: Labelling
    labels_from: str
    targets: Targets | None = None


def load_shards(
    config: ShardsConfig,
    root: Path,
    shards: Sequence[str],
    rows: Rows,
    build: Callable[[np.ndarray[Any, Any], Tensor | None, ImageFacts], EncodedDataset],
) -> SourceSplits:
    """Return the splits of a source in shards.

    Args:
        config, root, shards: The settings, the folder, and the shards below it.
        rows: The images in them.
        build: Returns the dataset of the rows ``[n]`` with their labels and what is known of them.

    Raises:
        UserError: A split has no images, or labels are impossible.
    """
    found = Found(str(root), "images", notes=list(rows.labels.notes))
    labels, classes = classes_of(rows.labels.values, rows.labels.class_names)
    division, places = divide_shards(shards, config)
    chosen = {split: np.flatnonzero(np.isin(rows.shard, some)) for split, some in places.items()}
    for split, some in chosen.items():
        if not len(some):
            raise UserError(f"data.root: the {division.said[split]} ({split}) in {root} hold no images; remove them.")
    for shard, count in enumerate(np.bincount(rows.shard, minlength=len(shards)).tolist()):
        if count and division.split[shard] is None:
            found.leave_out(NO_SPLIT, shards[shard], count)
    found.notes += division.notes
    found.read = sum(map(len, chosen.values()))
    if "test" not in chosen and config.test_fraction:
        train, test = draw_test(rows.keys[chosen["train"]], config.test_fraction, config.membership)
        division.said["test"] = f"drawn from all, data.test_fraction={config.test_fraction:g}"
        chosen |= {"train": chosen["train"][train], "test": chosen["train"][test]}
    parts = {
        split: build(some, None if labels is None else labels[some], config.facts(CALLED[split], classes=classes))
        for split, some in chosen.items()
        if len(some)
    }
    if labels is not None and classes is not None:
        found.labels, found.classes = rows.labels_from, classes
    if rows.targets is not None:
        found.labels = rows.labels_from
        for split, part in parts.items():
            part.targets = rows.targets.take(chosen[split])
    return as_source(parts, config, found, division.said)


def classes_of(values: Sequence[Any], names: Sequence[str] | None) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Return labels int64 ``[N]`` and the names of the classes; None twice where no image has a label.

    Args:
        values: Of each image a class number, a class name, or None. Negative numbers are missing labels, too.
        names: Names of the class numbers, where the source has them.

    Raises:
        UserError: The numbers are none of classes, or lie beyond the names.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    try:
        numbers = [-1 if value is None else max(-1, int(value)) for value in values]
    except (ValueError, TypeError):  # names, or what has one, such as a day
        found = tuple(sorted({str(value) for value in known}))
        place = {name: number for number, name in enumerate(found)}
        return torch.tensor([-1 if value is None else place[str(value)] for value in values]), found
    if max(numbers) < 0:
        return None, None
    limit = MOST_CLASSES if names is None else len(names)
    if max(numbers) >= limit:
        raise UserError(f"data.root: there is a label {max(numbers)}, but class numbers end at {limit - 1}; repair it.")
    return torch.tensor(numbers), tuple(map(str, range(max(numbers) + 1))) if names is None else tuple(names)
