"""The rows of a run's ``metrics.csv``, as the run wrote them or as a spreadsheet saved them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from selfsup.errors import UserError


@dataclass(frozen=True)
class Metrics:
    """What a ``metrics.csv`` holds.

    Attributes:
        columns: Names of its columns, ``step`` among them.
        rows: One dictionary a line, texts as in the file, the empty text where a line has no value.
        notes: What had to be left out, a sentence each.
    """

    columns: list[str]
    rows: list[dict[str, str]]
    notes: list[str]


def read_metrics(path: str | Path) -> Metrics:
    """Read a ``metrics.csv``.

    A last line that was cut short when the run was killed is left out, with a note. A byte-order mark, Windows' ends of
    lines, blank lines and further columns, as spreadsheets bring them, do no harm.

    Raises:
        UserError: It cannot be read, has no column ``step``, or a line within it is not like the others.
    """
    path = Path(path)
    notes = []
    try:
        if path.exists() and not path.is_file():  # of a pipe nobody may ever write the end
            raise OSError("it is no file")
        text = path.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("zero bytes in a text")
        end = 1 + max(text.rfind("\n"), text.rfind("\r"))
        if end < len(text):  # what follows may be whole or lack digits, which nothing shows
            notes.append(f"{path}: its last line was cut short and is left out.")
        lines = [line for line in csv.reader(io.StringIO(text[:end], newline="")) if any(line)]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table ({error}); put it right, or delete it.") from error
    if not lines:
        return Metrics([], [], notes)
    columns = lines[0]
    if "step" not in columns:
        raise UserError(f"{path} has no column 'step'; put its first line right, or delete it.")
    rows = []
    for number, line in enumerate(lines[1:], start=1):
        row = dict(zip(columns, line, strict=False))
        if len(line) != len(columns) or not _is_step(row["step"]):
            raise UserError(
                f"{path}: row {number} below its header does not fit its {len(columns)} columns with a whole number as "
                "step; put it right, or delete the file."
            )
        rows.append({**row, "step": str(int(float(row["step"])))})
    return Metrics(columns, rows, notes)


def _is_step(text: str) -> bool:
    try:
        return float(text) == int(float(text)) >= 0
    except (ValueError, OverflowError):
        return False
