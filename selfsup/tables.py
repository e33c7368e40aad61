"""Tables of text, for the console, for Markdown and for spreadsheets, whatever is in the names that they show."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

#: Characters that move the cursor, or the order of others, in place of being seen.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a text on one line with its control characters spelt out, as ``\\x1b``."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def console_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are aligned by spaces, its head underlined."""
    heads, *rows = [[*map(printable, line)] for line in (heads, *rows)]
    widths = _widths([heads, *rows])
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Return a Markdown table, with notes as a list below it.

    Its columns line up as text too, words to the left and numbers to the right.
    """
    lines = [[_as_text(cell).replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    widths = [max(2, width) for width in _widths(lines)]
    right = [i > 0 and all(map(_is_number, column[1:])) for i, column in enumerate(zip(*lines, strict=True))]
    lines.insert(1, ["-" * (width - 1) + "-:"[number] for width, number in zip(widths, right, strict=True)])
    text = ""
    for line in lines:
        columns = zip(line, widths, right, strict=True)
        cells = [cell.rjust(width) if number else cell.ljust(width) for cell, width, number in columns]
        text += f"| {' | '.join(cells)} |\n"
    return text + ("\n" if notes else "") + "".join(f"- {_as_text(note)}\n" for note in notes)


def csv_table(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table for a spreadsheet, in which no text becomes a formula: one that begins like it gets a ``'``."""
    file = io.StringIO()
    csv.writer(file).writerows([_harmless(cell) for cell in row] for row in (heads, *rows))
    return file.getvalue()


def _as_text(cell: str) -> str:
    """Return a text that Markdown takes for no markup."""
    return html.escape(printable(cell), quote=False)


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "+-–" or cell[0].isdigit()
