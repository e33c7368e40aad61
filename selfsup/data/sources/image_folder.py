"""A folder of one's own images, with a folder for each class, a table of labels, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from selfsup.data.base import SourceSplits
from selfsup.data.divide import CALLED, DividedConfig, Division, choose, divide_by_choice, divide_by_name
from selfsup.data.encoded import as_source
from selfsup.data.files import FileDataset
from selfsup.data.found import NOT_TAKEN, Found
from selfsup.data.labels import read_labels
from selfsup.data.listing import Listing, list_images, read_list
from selfsup.data.location import roots
from selfsup.data.membership import name_keys
from selfsup.data.shards import classes_of
from selfsup.data.splits import draw_test, split_of
from selfsup.data.targets import CLASSES, KINDS, Asked, Targets
from selfsup.errors import UserError
from selfsup.registry import sources
from selfsup.settings import TextOrList, setting
from selfsup.wording import counted


@dataclass
class ImageFolderConfig(DividedConfig):
    """Settings of a folder of images, or of several (``data.root=[A,B]``).

    ``root`` holds folders that are called as splits are, ``train`` beside ``test`` or ``valid``; or what ``splits``
    says; or it is one folder of images, of which ``test_fraction`` are set aside by a fixed draw.

    Attributes:
        files: Text file of the images to read, one path a line, relative to ``root`` or, without one, to the text file.
            None reads all images below ``root``.
        labelled: The folder of each image is its class. None: when every image lies in a folder and there are at least
            two such folders, or there is a table.
        class_level: Which folder is the class: 1 the first below ``root`` (or below the folder of the split), 2 the
            second, -1 the one that holds the file.
        labels: Table of labels, CSV or Parquet, in place of folders.
        label_column: Its column of labels, or a list of columns; None takes ``label``, ``class`` or the like, the only
            column there is, or all that hold 0 and 1, or numbers that are not whole.
        targets: What the table holds: ``classes``, ``multilabel`` (columns of 0 and 1, or a column of separated names)
            or ``real`` (columns of numbers). None decides, see ``selfsup.data.targets.decide``, and says what.
        label_separator: What stands between the names in a cell; None takes ``|`` and ``;``.
        file_column: Its column of files; None takes ``file``, ``path`` or the like. They are matched by their paths, or
            by as much of the end of it as only one file has.
    """

    name: str = "image_folder"
    files: str | None = None
    class_level: int = 1
    labels: str | None = None
    label_column: Annotated[Any, TextOrList] = None
    targets: str | None = setting(None, choices=KINDS)
    label_separator: str | None = None
    file_column: str | None = None


@sources.register("image_folder", ImageFolderConfig)
def image_folder(config: ImageFolderConfig) -> SourceSplits:
    """Your own images: set data.root; a folder for each class, a table of labels, or none."""
    folder, prefixes, listing = _listed(config)
    found = Found(" and ".join(map(str, roots(config))) or str(folder))
    for (reason, detail), count in listing.left_out.items():
        found.leave_out(reason, detail, count)
    if not listing.names:
        raise UserError(
            f"data.root: {found.where} holds no images{found.why_nothing()}; set data.root to a folder that does."
        )
    division, places = _divided(config, listing, prefixes)
    for left, count in division.left_out.items():
        found.leave_out(NOT_TAKEN, left, count)
    found.notes += division.notes
    found.read = sum(map(len, places.values()))
    for split, chosen in places.items():
        if not chosen:
            raise UserError(
                f"data.root: {division.said[split]}, which says what {split} is, holds no images that can be read"
                f"{found.why_nothing()}; fill or remove it, or set data.splits."
            )
    keys = name_keys(_own_names(listing.names, prefixes))
    if "test" not in places and config.test_fraction:
        train, test = draw_test(keys[places["train"]], config.test_fraction, config.membership)
        division.said["test"] = f"drawn from all, data.test_fraction={config.test_fraction:g}"
        places["test"] = [places["train"][place] for place in test]
        places["train"] = [places["train"][place] for place in train]

    used = sorted(chain(*places.values()))
    labels, classes, targets = _labels(config, listing.names, division.below, used, found)
    parts = {}
    for split, chosen in places.items():
        if chosen:
            parts[split] = FileDataset(
                folder,
                [listing.names[place] for place in chosen],
                None if labels is None else labels[chosen],
                config.facts(CALLED[split], classes=classes),
                keys=keys[chosen],
                decoding=config.decoding(),
            )
            parts[split].targets = None if targets is None else targets.take(chosen)
    return as_source(parts, config, found, division.said)


def _listed(config: ImageFolderConfig) -> tuple[Path, list[str], Listing]:
    """Return the folder that all images lie in, the roots in it (with a ``/`` behind, or nothing), and the images."""
    folders = roots(config)
    for folder in folders:
        if not folder.exists():
            raise UserError(f"data.root: there is no folder {folder}; set data.root to your folder of images.")
        if not folder.is_dir():
            raise UserError(f"data.root: {folder} is a file; set data.root to the folder that holds the images.")
    if config.files is not None:
        if len(folders) > 1:
            raise UserError("data.files goes with one data.root, or none; give the paths of the others in the list.")
        base, listing = read_list(Path(config.files).expanduser(), folders[0] if folders else None)
        return base, [""], listing
    if not folders:
        raise UserError("data.root is not set; set it to your folder of images.")
    if len(folders) == 1:
        return folders[0], [""], list_images(folders[0])
    places = [Path(os.path.abspath(folder)) for folder in folders]
    for place, other in ((a, b) for a in places for b in places if a is not b):
        if place.is_relative_to(other):
            raise UserError(f"data.root: {place} lies in {other}, so its images would be read twice; name one of them.")
    base = Path(os.path.commonpath(places))
    prefixes = [f"{place.relative_to(base).as_posix()}/" for place in places]
    listing = Listing()
    for folder, prefix in zip(folders, prefixes, strict=True):
        part = list_images(folder)
        if not part.names:
            raise UserError(f"data.root: {folder} holds no images; take it out of the list.")
        listing.names += [prefix + name for name in part.names]
        listing.folders += [prefix + name for name in part.folders]
        listing.left_out += part.left_out
    listing.names.sort()
    return base, prefixes, listing


def _own_names(names: Sequence[str], prefixes: Sequence[str]) -> Iterator[str]:
    """Return by what name each image is known: its path below its root, and of further roots also what they are called.

    So another root moves no image of those before it to another part.
    """
    for name in names:
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        below = name[len(prefix) :]
        yield below if prefix == prefixes[0] else f"{Path(prefix).name}/{below}"


def _divided(
    config: ImageFolderConfig, listing: Listing, prefixes: Sequence[str]
) -> tuple[Division, dict[str, list[int]]]:
    """Return of which split each file is, and the places of the files of each."""
    names = listing.names
    if config.splits is not None:
        whole = divide_by_choice(names, config.splits)
        return whole, choose(whole, config)
    whole = Division(["train"] * len(names), list(names))
    for prefix in prefixes:
        places = [place for place, name in enumerate(names) if name.startswith(prefix)]
        below = [names[place][len(prefix) :] for place in places]
        part = divide_by_name(below, [name[len(prefix) :] for name in listing.folders if name.startswith(prefix)])
        part = part or Division(["train"] * len(below), below, {"train": f"folder {prefix}" if prefix else "all"})
        for place, split, rest in zip(places, part.split, part.below, strict=True):
            whole.split[place], whole.below[place] = split, rest
        for split, said in part.said.items():
            where = f"{said} in {prefix}" if prefix and not said.endswith(prefix) else said
            whole.said[split] = f"{whole.said[split]}, {where}" if split in whole.said else where
        whole.left_out += part.left_out
        whole.notes += part.notes
    return whole, choose(whole, config)


def _labels(
    config: ImageFolderConfig, names: Sequence[str], below: Sequence[str], used: Sequence[int], found: Found
) -> tuple[Tensor | None, tuple[str, ...] | None, Targets | None]:
    """Return labels int64 of all files, -1 for none, and the classes; or targets in their place; fill ``found``."""
    if config.labelled is False:
        return None, None, None
    if config.labels is not None:
        return _from_table(config, names, found)
    if config.targets not in (None, CLASSES):
        raise UserError(f"data.targets is {config.targets}, but folders say classes; name a table in data.labels.")
    if config.class_level == 0:
        raise UserError("data.class_level is 0; set 1 for the first folder, 2 for the second, -1 for the last.")
    classes_by_place = {place: _class(below[place], config.class_level) for place in used}
    loose = next((names[place] for place, name in classes_by_place.items() if name is None), None)
    if loose is not None and config.labelled:
        raise UserError(
            f"data.labelled is true but {loose} in {found.where} lies in no class folder; move it or set false."
        )
    classes = tuple(sorted({name for name in classes_by_place.values() if name is not None}))
    if loose is not None or (len(classes) < 2 and not config.labelled):
        found.notes += _why_unlabelled(config, below, used, classes, loose)
        return None, None, None
    labels = torch.full((len(names),), -1)
    number = {name: label for label, name in enumerate(classes)}
    for place, name in classes_by_place.items():
        labels[place] = number[name or ""]
    splits = [name for name in classes if split_of(name)]
    if splits:
        found.notes.append(f"the folders called {' and '.join(splits)} are read as classes like the others")
    level = {1: "the first folder", -1: "the folder of each file"}.get(config.class_level, "folders, data.class_level")
    found.labels, found.classes = level, classes
    return labels, classes, None


def _from_table(
    config: ImageFolderConfig, names: Sequence[str], found: Found
) -> tuple[Tensor | None, tuple[str, ...] | None, Targets | None]:
    asked = Asked.by(config.targets, config.label_column, config.label_separator)
    table = read_labels(Path(str(config.labels)).expanduser(), names, config.file_column, asked)
    decided = table.decided
    for rows, what in (
        (table.rows_without_file, "no image of that name is read"),
        (table.short_rows, "left out, without the columns of labels"),
    ):
        if rows:
            found.notes.append(f"{counted(len(rows), 'row')} of {config.labels}: {what}, {rows[0]} for one")
    found.notes += decided.notes
    if all(value is None for value in decided.values):
        raise UserError(f"data.labels: {config.labels} has no label for any image; set data.labels to another.")
    found.labels = table.column
    if decided.kind != CLASSES:
        found.labels += f", {decided.why}"
        return None, None, decided.targets(decided.values)
    labels, classes = classes_of(decided.values, None)
    if labels is None:
        raise UserError(f"data.labels: {config.labels} has no label for any image; set data.labels to another.")
    found.classes = classes or ()
    return labels, classes, None


def _class(below: str, level: int) -> str | None:
    folders = below.split("/")[:-1]
    place = level - 1 if level > 0 else level
    return folders[place] if -len(folders) <= place < len(folders) else None


def _why_unlabelled(
    config: ImageFolderConfig, below: Sequence[str], used: Sequence[int], classes: Sequence[str], loose: str | None
) -> list[str]:
    """Return what to say where folders look nearly like classes."""
    if loose is not None and len(classes) > 1:
        count = sum(_class(below[place], config.class_level) is None for place in used)
        several = counted(count, "image lies", "images lie")
        return [
            f"no labels are read, as {several} in no class folder, {loose} for one; move them, or name the "
            "labels in a table (data.labels)"
        ]
    deeper = {name for place in used if (name := _class(below[place], 2)) is not None}
    if config.class_level == 1 and len(classes) == 1 and loose is None and len(deeper) > 1:
        return [
            f"no labels are read, as all images lie in one folder, {classes[0]}; data.class_level=2 makes the "
            f"{len(deeper):,} folders in it the classes"
        ]
    return []
