"""Classes from the values of a table, and a table of labels for files."""

from __future__ import annotations

import csv
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup.errors import UserError, packages

FILE_COLUMNS = (
    *("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "image_name"),
    *("image_file", "img", "img_path", "name", "id", "image_id"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "category", "target", "cls", "species", "breed", "diagnosis"),
    *("label_name", "class_id"),
)
FEW = 50  # up to so many classes are not looked at for being too many


@dataclass
class Labels:
    """Labels of files.

    Attributes:
        values: Of each file its label, or None.
        column: Where they come from.
        rows_without_file: Rows of the table that name no file that is there, and one of them.
    """

    values: list[Any]
    column: str
    rows_without_file: list[str]


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
    numbers = [_number(value) for value in known]
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


def read_labels(
    path: Path, names: Sequence[str], file_column: str | None = None, label_column: str | None = None
) -> Labels:
    """Read the labels of files from a table.

    A row is that of the file whose path ends as the row says, or the other way round, by whole folders; the ending of
    the file may be left out. So a table may lie anywhere, and say ``cats/1.jpg``, ``1.jpg``, ``1`` or a full path.

    Args:
        path: A CSV file (commas, semicolons or tabs) or a Parquet file.
        names: Paths of the files below the root.
        file_column, label_column: The columns; None takes those that are called as such columns are.

    Returns:
        The label of each file.

    Raises:
        UserError: The file or its columns cannot be read, are no classes, or do not tell the files apart.
    """
    header, rows = _read_table(path)
    if file_column is None and len(header) == 2 and not {name.lower() for name in header} & {*FILE_COLUMNS}:
        index = _Index(names)
        if index.find(str(header[0])):  # no header: the first line is a file's
            header, rows = ["first", "second"], [header, *rows]
            file_column, label_column = "first", label_column or "second"
    file = _column(path, header, file_column, "file_column", FILE_COLUMNS)
    others = [name for name in header if name != file]
    only = others[0] if len(others) == 1 and label_column is None else label_column
    label = _column(path, others, only, "label_column", LABEL_COLUMNS)
    places = header.index(file), header.index(label)
    pairs = [(str(row[places[0]]), tidy(row[places[1]])) for row in rows if len(row) > max(places)]
    reason = why_no_classes([value for _, value in pairs], counted=label_column is None)
    if reason is not None:
        raise UserError(
            f"data.labels: the column {label} of {path} holds no classes: {reason}; set data.label_column to a column "
            "that does, or data.labels=null."
        )
    found = _match(path, names, pairs)
    found.column = f"column {label} of {path.name}"
    return found


def _match(path: Path, names: Sequence[str], pairs: Sequence[tuple[str, Any]]) -> Labels:
    index = _Index(names)
    found = Labels([None] * len(names), "", [])
    for file, value in pairs:
        places = index.find(file)
        if not places:
            found.rows_without_file.append(file)
        elif len(places) > 1:
            raise UserError(
                f"data.labels: {file} in {path} can be {names[places[0]]} and {names[places[1]]}; write the path below "
                "data.root."
            )
        elif value is not None:
            known = found.values[places[0]]
            if known not in (None, value):
                raise UserError(
                    f"data.labels: {path} gives {names[places[0]]} two labels, {known} and {value}; give it one."
                )
            found.values[places[0]] = value
    if len(found.rows_without_file) == len(pairs):
        example = f"{pairs[0][0]} for one" if pairs else "as it has no rows"
        raise UserError(
            f"data.labels: no row of {path} names an image below data.root, {example}; the column of files holds their "
            f"paths or names, such as {names[0]} (data.file_column)."
        )
    return found


class _Index:
    """Files by what a table may call them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.parts = [tuple(_plain(name).split("/")) for name in names]
        self.places: dict[str, list[int]] = defaultdict(list)
        for place, parts in enumerate(self.parts):
            for last in {parts[-1], _stem(parts[-1])}:
                self.places[last].append(place)

    def find(self, file: str) -> list[int]:
        """Return the places of the files that are meant; the very path goes before all others."""
        wanted = tuple(part for part in _plain(file).replace("\\", "/").split("/") if part not in ("", "."))
        if not wanted:
            return []
        found = []
        for place in self.places.get(wanted[-1], ()):
            parts = self.parts[place]
            shared = min(len(parts), len(wanted)) - 1
            if parts[len(parts) - 1 - shared : -1] == wanted[len(wanted) - 1 - shared : -1]:
                if parts == wanted:
                    return [place]
                found.append(place)
        return found


def _read_table(path: Path) -> tuple[list[str], list[list[Any]]]:
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return _read_parquet(path)
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.labels: {path} cannot be read ({error}); set it to a CSV or Parquet file.") from error
    first = text.split("\n", 1)[0]
    rows = list(csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count)))
    rows = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if not rows or len(rows[0]) < 2:
        raise UserError(
            f"data.labels: {path} does not have two columns; a table needs one for the files and one for the labels."
        )
    return rows[0], list(rows[1:])


def _read_parquet(path: Path) -> tuple[list[str], list[list[Any]]]:
    arrow, parquet = packages("data.labels: a Parquet file", "parquet", "pyarrow", "pyarrow.parquet")
    try:
        table = parquet.read_table(path, partitioning=None)
    except arrow.ArrowException as error:
        raise UserError(f"data.labels: {path} is not a Parquet file or is damaged; repair it.") from error
    columns = [column.to_pylist() for column in table.columns]
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def _column(path: Path, header: Sequence[str], wanted: str | None, setting: str, known: Sequence[str]) -> str:
    if wanted is None:
        lower = {name.lower().replace(" ", "_"): name for name in reversed(header)}
        wanted = next((lower[name] for name in known if name in lower), None)
        if wanted is None:
            raise UserError(f"data.{setting} is not set; set it to one of the columns of {path}: {', '.join(header)}.")
    if wanted not in header:
        raise UserError(f"data.{setting}: {path} has no column {wanted}; the columns are {', '.join(header)}.")
    return wanted


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # a Mac writes an umlaut as two characters


def _stem(name: str) -> str:
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name
