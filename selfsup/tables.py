"""Tables of text, for the console and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def console_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are aligned by spaces, its head underlined."""
    widths = _widths([heads, *rows])
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Return a Markdown table, with notes as a list below it.

    Its columns line up as text too, words to the left and numbers to the right.
    """
    lines = [heads, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(2, width) for width in _widths(lines)]
    right = [i > 0 and all(map(_is_number, column[1:])) for i, column in enumerate(zip(*lines, strict=True))]
    lines.insert(1, ["-" * (width - 1) + "-:"[number] for width, number in zip(widths, right, strict=True)])
    text = ""
    for line in lines:
        columns = zip(line, widths, right, strict=True)
        cells = [cell.rjust(width) if number else cell.ljust(width) for cell, width, number in columns]
        text += f"| {' | '.join(cells)} |\n"
    return text + ("\n" + "".join(f"- {note}\n" for note in notes) if notes else "")


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "+-–" or cell[0].isdigit()
