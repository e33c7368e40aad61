"""Targets that are no classes: several labels an image, or real values; and what decides of which kind a table is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from selfsup.errors import UserError

CLASSES, MULTILABEL, REAL = KINDS = ("classes", "multilabel", "real")
NOTHING = {"", "nan", "na", "n/a", "null", "none"}  # what tables write where a value is missing, in small letters
SEPARATORS = "|;"
FEW = 50  # up to so many classes are not looked at for being too many
FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}  # pandas writes 1.0 where a cell is missing


@dataclass(frozen=True)
class Targets:
    """What the images of a split have in place of one class each.

    Attributes:
        kind: ``multilabel`` or ``real``.
        names: Of the labels, or of the real values.
        values: ``[M,T]`` of every image of the *source split*, in its order: ``values[dataset.index]`` are those of a
            part. Multi-label: int8, 1 where an image has the label and 0 where it has not, -1 all along the row of
            an image that nothing is known of. Real: float64, NaN all along such a row.
    """

    kind: str
    names: tuple[str, ...]
    values: Tensor

    def of(self, index: Tensor) -> Tensor:
        """Return the rows of images by their stable index: int64 ``[N]`` to ``[N,T]``."""
        return self.values[index]

    def take(self, rows: Any) -> Targets:
        """Return the targets of a split that is made of some rows of these."""
        return Targets(self.kind, self.names, self.values[rows])


def has_targets(values: Tensor) -> Tensor:
    """Return bool ``[N]``: which rows of targets ``[N,T]`` are known."""
    return ~values.isnan().any(1) if values.is_floating_point() else (values >= 0).all(1)


def numbers_of(parts: Mapping[str, Tensor], names: Sequence[str]) -> tuple[dict[str, Any], int, list[str]]:
    """Return what a run keeps and says of the targets of its splits.

    Args:
        parts: Of each split its targets ``[N,T]``; there is ``train``.
        names: Of the targets.

    Returns:
        Numbers of each target over all splits, how many images have none, and what a person should know.
    """
    values = torch.cat(list(parts.values()))
    known = values[has_targets(values)]
    notes: list[str] = []
    if values.is_floating_point():
        own = {
            name: {"least": column.min().item(), "mean": column.mean().item(), "most": column.max().item()}
            for name, column in zip(names, known.T, strict=True)
        }
        return {"kind": REAL, "names": list(names), "of_each": own}, len(values) - len(known), notes
    counts = known.sum(0)
    trained = (parts["train"] == 1).any(0)
    new = [name for name, count, there in zip(names, counts, trained, strict=True) if count and not there]
    if new:
        notes.append(f"{len(new):,} labels have no training image, {new[0]} for one")
    found = {
        "kind": MULTILABEL,
        "names": list(names),
        "of_each": {name: int(count) for name, count in zip(names, counts, strict=True)},
        "an_image": round(counts.sum().item() / max(1, len(known)), 3),
        "images_with_none": int((known.sum(1) == 0).sum()),
    }
    return found, len(values) - len(known), notes


@dataclass(frozen=True)
class Asked:
    """What the settings say of the targets.

    Attributes:
        kind: ``data.targets``, or None to decide.
        columns: ``data.label_column``, the columns; none where they are to be found.
        separator: ``data.label_separator``, or None for ``|`` and ``;``.
    """

    kind: str | None = None
    columns: tuple[str, ...] = ()
    separator: str | None = None

    @classmethod
    def by(cls, targets: str | None, label_column: Any, separator: str | None) -> Asked:
        """Return what settings say, of which the columns are a name, a list or None."""
        columns = label_column if isinstance(label_column, (list, tuple)) else [label_column] if label_column else []
        return cls(targets, tuple(map(str, columns)), separator)


@dataclass
class Decided:
    """What the values of columns are.

    Attributes:
        kind: One of ``KINDS``.
        why: What decided it, in words.
        values: Of each row a class (of ``classes``), a tuple of numbers, or None where nothing is known.
        names: Of the labels or the real values; of classes none.
        notes: What a person should know.
    """

    kind: str
    why: str
    values: list[Any]
    names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def targets(self, values: Sequence[Any]) -> Targets:
        """Return the targets of images, of each its tuple or None."""
        missing = -1 if self.kind == MULTILABEL else math.nan
        rows = [[missing] * len(self.names) if value is None else list(value) for value in values]
        kind = torch.int8 if self.kind == MULTILABEL else torch.float64
        return Targets(self.kind, self.names, torch.tensor(rows, dtype=kind).reshape(len(rows), len(self.names)))


def decide(columns: Mapping[str, Sequence[Any]], asked: Asked, setting: str, of: Sequence[str]) -> Decided:
    """Say of which kind the values of columns are, and read them.

    The rule, where ``data.targets`` does not say it. Several columns: multi-label where all hold 0 and 1 alone, real
    where all hold numbers. One column: multi-label where a cell holds several names (``cat|dog``, ``cat;dog`` or a
    list), real where it holds numbers that are not all whole, and otherwise classes. Cells that are empty, NaN or NA
    count for nothing in that; an image that has such a cell among several has no targets.

    Args:
        columns: Of each column its values, one a row: text, numbers, lists or None.
        asked: What the settings say.
        setting: Begins every message, such as ``data.labels: column x of y.csv``.
        of: Of each row the image, for messages.

    Raises:
        UserError: The values are of no kind, or not of the one that is asked for.
    """
    several = len(columns) > 1
    tidied = {name: [_tidy(value) for value in values] for name, values in columns.items()}
    kind, why = asked.kind, f"data.targets={asked.kind}"
    if kind is None:
        kind, why = _kind(tidied, asked.separator)
    if kind == CLASSES:
        if several:
            raise UserError(f"{setting}: classes are one column; set data.label_column to the one that holds them.")
        values = [tidy(value) for value in next(iter(columns.values()))]
        reason = why_no_classes(values, counted=not asked.columns)
        if reason is not None:
            raise UserError(
                f"{setting} holds no classes: {reason}; set data.label_column to a column that does, data.targets to "
                "multilabel or real where that is what it holds, or data.labels=null."
            )
        return Decided(CLASSES, why, values)
    if kind == MULTILABEL and not several and not _all(_flag, tidied):
        return _named(tidied, asked, setting, why)
    found = _table(tidied, kind, setting, of)
    found.why = why
    return found


def why_no_classes(values: Sequence[Any], counted: bool = True) -> str | None:
    """Return why values cannot be the classes of images, or None where they can.

    Args:
        values: Numbers, names or None, one an image.
        counted: Whether nearly as many classes as images are a reason.
    """
    known = [value for value in map(tidy, values) if value is not None]
    for value in known:
        text = value.strip() if isinstance(value, str) else ""
        several = isinstance(value, (list, tuple, dict, set)) or (text[:1] + text[-1:] in ("[]", "()", "{}"))
        if several or "|" in text or ";" in text:
            return f"an image has several ({value})"
    numbers = [as_number(value) for value in known]
    real = [number for number in numbers if number is not None and not float(number).is_integer()]
    if real and all(number is not None for number in numbers):
        return f"it holds real numbers ({real[0]:g})"
    distinct = len(Counter(map(str, known)))
    if counted and distinct > FEW and 2 * distinct > len(known):
        return f"it holds {distinct} values for {len(known)} images, as names or numbers of images do"
    return None


def tidy(value: Any) -> Any:
    """Return a value of a table with the many ways to say that there is none as None, and whole numbers as such."""
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    if isinstance(value, str):
        return value.strip() or None
    return value


def _kind(columns: Mapping[str, Sequence[Any]], separator: str | None) -> tuple[str, str]:
    if len(columns) > 1:
        if _all(_flag, columns):
            return MULTILABEL, "as every column holds 0 and 1"
        return REAL, "as there are several columns and not all hold 0 and 1"
    values = [value for value in next(iter(columns.values())) if value is not None]
    if any(_holds_several(value, separator) for value in values):
        return MULTILABEL, "as a cell can hold several names"
    numbers = [number for value in values if (number := as_number(value)) is not None]
    real = sum(not number.is_integer() for number in numbers)
    # where most cells are such numbers, the others are mistakes and not names of classes
    if real and (len(numbers) == len(values) or 2 * real > len(values)):
        return REAL, "as it holds numbers that are not whole"
    return CLASSES, "as a cell holds one name or whole number"


def may_be_targets(columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether several columns look like targets to somebody who was told nothing: all hold 0 and 1, or real numbers."""
    tidied = {name: [_tidy(value) for value in values] for name, values in columns.items()}
    real = all(_kind({name: values}, None)[0] == REAL for name, values in tidied.items())
    return len(columns) > 1 and (real or _all(_flag, tidied))


def _table(columns: Mapping[str, Sequence[Any]], kind: str, setting: str, of: Sequence[str]) -> Decided:
    """Read columns of flags or numbers."""
    read, what = (_flag, "0 and 1") if kind == MULTILABEL else (_finite, "numbers")
    wrong: list[tuple[str, str, Any]] = []
    incomplete = []
    values: list[Any] = []
    for row, cells in zip(of, zip(*columns.values(), strict=True), strict=True):
        numbers = [None if cell is None else read(cell) for cell in cells]
        for name, cell, number in zip(columns, cells, numbers, strict=True):
            if cell is not None and number is None:
                wrong.append((row, name, cell))
        unknown = sum(cell is None for cell in cells)
        if 0 < unknown < len(cells):
            incomplete.append(row)
        values.append(None if unknown else tuple(numbers))
    if wrong:
        row, name, cell = wrong[0]
        raise UserError(
            f"{setting}: {len(wrong):,} cells hold something else than {what}, '{cell}' in the column {name} of {row} "
            "for one; empty them where the value is unknown, or set data.label_column (the columns to read) and "
            "data.targets (classes, multilabel or real)."
        )
    if not columns or all(value is None for value in values):
        raise UserError(f"{setting}: no row has a value in every column; fill the table, or set data.labels=null.")
    notes = []
    if incomplete:
        notes.append(
            f"{len(incomplete):,} rows have some cells empty or NaN, {incomplete[0]} for one: these images have no "
            "targets"
        )
    return Decided(kind, "", values, tuple(columns), notes)


def _named(columns: Mapping[str, Sequence[Any]], asked: Asked, setting: str, why: str) -> Decided:
    """Read a column whose cells hold names."""
    parts = [None if value is None else _names(value, asked.separator) for value in next(iter(columns.values()))]
    known = [part for part in parts if part is not None]
    counts = Counter(name for part in known for name in part)
    if not counts:
        raise UserError(f"{setting}: no row has a name; fill the table, or set data.labels=null.")
    if asked.kind is None and len(counts) > FEW and 2 * len(counts) > len(known):
        raise UserError(
            f"{setting} holds no labels: it has {len(counts):,} names for {len(known):,} images, '{min(counts)}' for "
            "one; set data.label_column to another column, or data.targets=multilabel to take it all the same."
        )
    names = tuple(sorted(counts))
    place = {name: number for number, name in enumerate(names)}
    values: list[Any] = []
    for part in parts:
        row = [0] * len(names)
        for name in part or ():
            row[place[name]] = 1
        values.append(None if part is None else tuple(row))
    return Decided(MULTILABEL, why, values, names)


def _names(value: Any, separator: str | None) -> list[str]:
    if isinstance(value, (list, tuple, set)):
        return [str(part) for part in value]
    text = str(value)
    if text[:1] + text[-1:] in ("[]", "()", "{}"):  # a list as programs write it
        text, separators = text[1:-1], separator or ","
    else:
        separators = separator or SEPARATORS
    for other in () if separator else separators:
        text = text.replace(other, separators[0])
    parts = (part.strip().strip("'\"") for part in text.split(separator or separators[0]))
    return [part for part in parts if part]


def _holds_several(value: Any, separator: str | None) -> bool:
    if isinstance(value, (list, tuple, set)):
        return not any(isinstance(part, (float, list, dict)) for part in value)
    if not isinstance(value, str):
        return False
    listed = value[:1] + value[-1:] in ("[]", "()", "{}")
    return listed or any(part in value for part in ((separator,) if separator else SEPARATORS))


def _tidy(value: Any) -> Any:
    """Return a cell, None for the many ways to say that there is nothing in it."""
    value = tidy(value)
    return None if isinstance(value, str) and value.lower() in NOTHING else value


def _flag(value: Any) -> int | None:
    return None if isinstance(value, float) else FLAGS.get(str(value).lower())


def as_number(value: Any) -> float | None:
    """Return a value as a number, or None."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _finite(value: Any) -> float | None:
    number = as_number(value)
    return number if number is not None and math.isfinite(number) else None


def _all(read: Any, columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether every cell that is there can be read so."""
    return all(cell is None or read(cell) is not None for values in columns.values() for cell in values)
