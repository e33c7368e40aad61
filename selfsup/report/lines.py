"""A record in one line, for the console."""

from __future__ import annotations

from selfsup.eval.record import Record
from selfsup.eval.registry import PROTOCOLS


def record_line(record: Record) -> str:
    """Return one line that says a value, what it is of, and the fields that its protocol wants said."""
    told = list(PROTOCOLS[record.protocol].told) if record.protocol in PROTOCOLS else []
    told += ["index", "recall"] if record.get("index", "flat") != "flat" else []
    told += ["labelled_images"] if record.get("label_fraction", 1) < 1 else []
    details = ", ".join(f"{key}={record[key]}" for key in told if key in record)
    what = record.protocol if record.metric in ("top1", "miou") else record.metric
    return f"{what:14s} {record.text():>9s}  on {record.split}{f' ({details})' if details else ''}"
