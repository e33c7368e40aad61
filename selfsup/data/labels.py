"""A table of labels for files."""

from __future__ import annotations

import csv
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfsup.data.targets import Asked, Decided, decide, may_be_targets
from selfsup.errors import UserError, packages

FILE_COLUMNS = (
    *("file", "filename", "file_name", "filepath", "file_path", "path", "image", "image_path", "image_name"),
    *("image_file", "img", "img_path", "name", "id", "image_id"),
)
LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "category", "target", "cls", "species", "breed", "diagnosis"),
    *("label_name", "class_id"),
)
UNASKED = Asked()


@dataclass
class Labels:
    """Labels of files.

    Attributes:
        decided: Of which kind they are; its ``values`` are one a file, None where nothing is known.
        column: Where they come from.
        rows_without_file: Rows of the table that name no file that is there.
        short_rows: Files of rows that end before the columns that are read.
    """

    decided: Decided
    column: str
    rows_without_file: list[str]
    short_rows: list[str]


def read_labels(path: Path, names: Sequence[str], file_column: str | None = None, asked: Asked = UNASKED) -> Labels:
    """Read the labels of files from a table.

    A row is that of the file whose path ends as the row says, or the other way round, by whole folders; the ending of
    the file may be left out. So a table may lie anywhere, and say ``cats/1.jpg``, ``1.jpg``, ``1`` or a full path.

    Args:
        path: A CSV file (commas, semicolons or tabs) or a Parquet file.
        names: Paths of the files below the root.
        file_column: The column of files; None takes one that is called as such columns are.
        asked: What the settings say of the labels; without columns the one that is called as such columns are is
            taken, or the only one, or all where they can be nothing but targets (``may_be_targets``).

    Returns:
        The labels of each file.

    Raises:
        UserError: The file or its columns cannot be read, are of no kind, or do not tell the files apart.
    """
    header, rows = _read_table(path)
    if file_column is None and len(header) == 2 and not {name.lower() for name in header} & {*FILE_COLUMNS}:
        index = _Index(names)
        if index.find(str(header[0])):  # no header: the first line is a file's
            header, rows = ["first", "second"], [header, *rows]
            file_column, asked = "first", replace(asked, columns=asked.columns or ("second",))
    file = _column(path, header, file_column, "file_column", FILE_COLUMNS)
    columns = _label_columns(path, header, rows, file, asked)
    places = [header.index(name) for name in (file, *columns)]
    whole = [[row[place] for place in places] for row in rows if len(row) > max(places)]
    short = [str(row[places[0]]) for row in rows if places[0] < len(row) <= max(places)]
    files = [str(row[0]) for row in whole]
    several = len(columns) > 1
    column = f"columns {', '.join(columns)}" if several else f"the column {columns[0]}"
    values = {name: [row[place] for row in whole] for place, name in enumerate(columns, start=1)}
    decided = decide(values, asked, f"data.labels: {column} of {path}", files)
    found, without = _match(path, names, list(zip(files, decided.values, strict=True)))
    said = f"{len(columns)} columns" if several else f"column {columns[0]}"
    return Labels(replace(decided, values=found), f"{said} of {path.name}", without, short)


def _label_columns(path: Path, header: Sequence[str], rows: Sequence[list[Any]], file: str, asked: Asked) -> list[str]:
    """Return the columns of labels."""
    others = [name for name in header if name != file]
    if asked.columns:
        return [_column(path, others, name, "label_column", ()) for name in asked.columns]
    if len(others) == 1:
        return others
    if not {name.lower().replace(" ", "_") for name in others} & {*LABEL_COLUMNS}:
        places = {name: header.index(name) for name in others}
        whole = [row for row in rows if len(row) >= len(header)]
        if may_be_targets({name: [row[place] for row in whole] for name, place in places.items()}):
            return others
    return [_column(path, others, None, "label_column", LABEL_COLUMNS)]


def _match(path: Path, names: Sequence[str], pairs: Sequence[tuple[str, Any]]) -> tuple[list[Any], list[str]]:
    """Return the value of each file, and the rows that name none."""
    index = _Index(names)
    found: list[Any] = [None] * len(names)
    without = []
    for file, value in pairs:
        places = index.find(file)
        if not places:
            without.append(file)
        elif len(places) > 1:
            raise UserError(
                f"data.labels: {file} in {path} can be {names[places[0]]} and {names[places[1]]}; write the path below "
                "data.root."
            )
        elif value is not None:
            known = found[places[0]]
            if known not in (None, value):
                differ = "two rows that differ" if isinstance(value, tuple) else f"two labels, {known} and {value}"
                raise UserError(f"data.labels: {path} gives {names[places[0]]} {differ}; give it one.")
            found[places[0]] = value
    if len(without) == len(pairs):
        example = f"{pairs[0][0]} for one" if pairs else "as it has no rows"
        raise UserError(
            f"data.labels: no row of {path} names an image below data.root, {example}; the column of files holds their "
            f"paths or names, such as {names[0]} (data.file_column)."
        )
    return found, without


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
        reason = getattr(error, "strerror", None) or error  # the path is named beside it
        raise UserError(f"data.labels: {path} cannot be read ({reason}); set it to a CSV or Parquet file.") from error
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
            several = ", or to several, [A,B]," if setting == "label_column" else ""
            raise UserError(
                f"data.{setting} is not set; set it to one of the columns of {path}{several}: {', '.join(header)}."
            )
    if wanted not in header:
        raise UserError(f"data.{setting}: {path} has no column {wanted}; the columns are {', '.join(header)}.")
    return wanted


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # a Mac writes an umlaut as two characters


def _stem(name: str) -> str:
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name
