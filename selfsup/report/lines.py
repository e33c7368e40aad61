"""Records for the console: one in a line, and many in a table."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.eval.record import AT_START, FRACTION, Record
from selfsup.eval.registry import PROTOCOLS
from selfsup.tables import console_table


def result_table(records: Sequence[Record]) -> str:
    """Return a table of the number to report for each protocol and metric: accuracies first, the highest at the top.

    Where there are records of the weights that the training started from, a column has them.
    """
    before = {_key(record): record for record in _chosen([r for r in records if r.get("at") == AT_START])}
    rows = _chosen([r for r in records if r.get("at") != AT_START]) or list(before.values())
    rows = sorted(rows, key=lambda r: (r.unit != FRACTION, -r.value if r.unit == FRACTION else 0))
    cells = [[_what(record), record.text(), record.split, _details(record)] for record in rows]
    heads = ["measure", "value", "images", "how"]
    if before and rows[0].get("at") != AT_START:
        heads.insert(2, "at the start")
        for record, line in zip(rows, cells, strict=True):
            line.insert(2, before[_key(record)].text() if _key(record) in before else "–")
    return console_table(heads, cells)


#: Fields by which one protocol gives several measures that stand side by side.
ASIDE = ("target", "method", "readout", "classifier")


def _key(record: Record) -> tuple[str, ...]:
    return record.protocol, record.metric, *(str(record.get(name, "")) for name in ASIDE)


def _chosen(records: Sequence[Record]) -> list[Record]:
    """Return the record to report of each measure."""
    chosen: dict[tuple[str, ...], Record] = {}
    for record in records:
        key = _key(record)
        if key not in chosen or _worth(record) > _worth(chosen[key]):
            chosen[key] = record
    return list(chosen.values())


def _worth(record: Record) -> tuple[bool, float]:
    return bool(record.get("primary")), record.value


def record_line(record: Record) -> str:
    """Return one line that says a value, what it is of, and the fields that its protocol wants said."""
    details = _details(record)
    when = ", the weights that it started from" if record.get("at") == AT_START else ""
    return f"{_what(record):14s} {record.text():>9s}  on {record.split}{f' ({details})' if details else ''}{when}"


def _what(record: Record) -> str:
    known = record.metric in ("top1", "miou") or (record.metric == "map" and record.protocol != "retrieval")
    return record.protocol if known else record.metric


def _details(record: Record) -> str:
    shown = list(PROTOCOLS[record.protocol].shown) if record.protocol in PROTOCOLS else []
    shown += ["index", "recall"] if record.get("index", "flat") != "flat" else []
    shown += ["labelled_images"] if record.get("label_fraction", 1) < 1 else []
    return ", ".join(f"{key}={record[key]}" for key in shown if key in record)
