"""Tables of text, for the console and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.eval.record import Record
from selfsup.eval.registry import PROTOCOLS


def console_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are aligned by spaces, its head underlined."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Return a Markdown table, with notes as a list below it."""
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text + ("\n" + "".join(f"- {note}\n" for note in notes) if notes else "")


def record_line(record: Record) -> str:
    """Return one line that says a value, what it is of, and the fields that its protocol wants said."""
    told = list(PROTOCOLS[record.protocol].told) if record.protocol in PROTOCOLS else []
    told += ["index", "recall"] if record.get("index", "flat") != "flat" else []
    told += ["labelled_images"] if record.get("label_fraction", 1) < 1 else []
    details = ", ".join(f"{key}={record[key]}" for key in told if key in record)
    what = record.protocol if record.metric in ("top1", "miou") else record.metric
    return f"{what:14s} {record.text():>9s}  on {record.split}{f' ({details})' if details else ''}"
