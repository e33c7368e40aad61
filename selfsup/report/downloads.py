"""What a page shows, as tables for a spreadsheet."""

from __future__ import annotations

import json
from typing import Any

from selfsup.eval.record import Record
from selfsup.report.compared import Compared
from selfsup.report.estimates import accuracy_over_time, estimate
from selfsup.tables import csv_table


def downloads(runs: Compared) -> list[tuple[str, str, str]]:
    """Return name, description and text of every table."""
    return [
        ("comparison.csv", "the runs", runs.table.csv()),
        ("uncertainty.csv", "accuracies with uncertainty", _uncertainty(runs)),
        ("records.csv", "every number with its protocol", _records(runs)),
        ("curves.csv", "accuracy over wall time", _curves(runs)),
    ]


def shown(record: Record) -> dict[str, Any]:
    """Return what the page says of a record: all of it but what was found and holds lists, such as curves."""

    def holds_lists(value: Any) -> bool:
        inside = value.values() if isinstance(value, dict) else ()
        return isinstance(value, list) or any(isinstance(part, dict | list) for part in inside)

    left = {name for name, value in record.found.items() if holds_lists(value)}
    return {name: value for name, value in record.flat().items() if name not in left}


def _uncertainty(runs: Compared) -> str:
    rows = []
    for group in runs.groups:
        for column in runs.table.accuracies:
            found = estimate(runs.table, group.places, column)
            if found is not None:
                own = " ".join(runs.names[place] for place in group.places)
                rows.append((group.label, own, column, found.value, found.low, found.high, found.kind))
    return csv_table(("configuration", "runs", "measure", "value", "low", "high", "kind"), rows)


def _records(runs: Compared) -> str:
    main = ("protocol", "split", "metric", "value")
    rows = []
    for name, run in zip(runs.names, runs.runs, strict=True):
        for record in run.records:
            said = shown(record)
            rest = {key: value for key, value in said.items() if key not in main}
            rows.append((name, *(said[key] for key in main), json.dumps(rest, ensure_ascii=False)))
    return csv_table(("run", *main, "details"), rows)


def _curves(runs: Compared) -> str:
    rows: list[tuple[Any, ...]] = []
    for name, run in zip(runs.names, runs.runs, strict=True):
        rows += [(name, *point) for point in accuracy_over_time(run)]
    return csv_table(("run", "step", "seconds", "online/knn"), rows)
