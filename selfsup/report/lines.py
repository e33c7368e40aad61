"""Records for the console: one in a line, and many in a table."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import PROTOCOLS
from selfsup.tables import console_table


def result_table(records: Sequence[Record]) -> str:
    """Return a table of the number to report for each protocol and metric: accuracies first, the highest at the top."""
    chosen: dict[tuple[str, str, str], Record] = {}
    for record in records:
        key = record.protocol, record.metric, str(record.get("target", ""))
        if key not in chosen or _worth(record) > _worth(chosen[key]):
            chosen[key] = record
    rows = sorted(chosen.values(), key=lambda r: (r.unit != FRACTION, -r.value if r.unit == FRACTION else 0))
    cells = [[_what(record), record.text(), record.split, _details(record)] for record in rows]
    return console_table(["measure", "value", "images", "how"], cells)


def _worth(record: Record) -> tuple[bool, float]:
    return bool(record.get("primary")), record.value


def record_line(record: Record) -> str:
    """Return one line that says a value, what it is of, and the fields that its protocol wants said."""
    details = _details(record)
    return f"{_what(record):14s} {record.text():>9s}  on {record.split}{f' ({details})' if details else ''}"


def _what(record: Record) -> str:
    known = record.metric in ("top1", "miou") or (record.metric == "map" and record.protocol != "retrieval")
    return record.protocol if known else record.metric


def _details(record: Record) -> str:
    shown = list(PROTOCOLS[record.protocol].shown) if record.protocol in PROTOCOLS else []
    shown += ["index", "recall"] if record.get("index", "flat") != "flat" else []
    shown += ["labelled_images"] if record.get("label_fraction", 1) < 1 else []
    return ", ".join(f"{key}={record[key]}" for key in shown if key in record)
