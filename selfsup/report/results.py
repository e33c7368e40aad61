"""The table of a page: the numbers of the runs, how sure they are, and where each one's protocol stands."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfsup.eval.record import Record
from selfsup.report.compared import Compared
from selfsup.report.comparison import MISSING
from selfsup.report.downloads import shown
from selfsup.report.estimates import NOT_THE_METHOD, Group, estimate, is_number, range_text

SHARED = ("method", "backbone", "data", "epochs", "split", "images seen")  # said once when all runs agree
#: Protocols of the columns that are no accuracies.
OTHERS = {"RankMe": "diagnostics", "seconds": "training", "memory MB": "training", "images seen": "training"}
TEXT = ("run", "method", "backbone", "data", "seed", "split")
HEADS = {"seconds": "training, s", "memory MB": "memory, MB"}


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        text: What it says.
        sort: What it is sorted by; None is its text.
        key: Id of the protocol of its number, or nothing.
        range: How sure the number is.
    """

    text: str
    sort: str | None = None
    key: str = ""
    range: str = ""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        caption: Its name.
        heads: Names of the columns, and whether each holds numbers.
        lines: Label, link to the folder or nothing, and cells.
    """

    caption: str
    heads: Sequence[tuple[str, bool]]
    lines: Sequence[tuple[str, str, Sequence[Cell]]]


def shared(runs: Compared) -> dict[str, Any]:
    """Return what is the same for all runs, by column."""
    rows = runs.table.rows
    return {
        column: rows[0][column]
        for column in SHARED
        if column in runs.table.columns and rows[0][column] is not None and len({str(r[column]) for r in rows}) == 1
    }


def results_grid(runs: Compared, groups: Sequence[Group], links: Sequence[str]) -> Grid:
    """Return the numbers of groups of runs.

    Args:
        runs: All runs.
        groups: One a line.
        links: Where the folder of each run is.
    """
    known = shared(runs)
    columns = [column for column in runs.table.columns[1:] if column not in known]
    lines = []
    for group in groups:
        link = links[group.places[0]] if len(group.places) == 1 else ""
        lines.append((group.label, link, [_cell(runs, group, column) for column in columns]))
    caption = "Configurations" if any(len(group.places) > 1 for group in groups) else "Runs"
    return Grid(caption, [(HEADS.get(column, column), column not in TEXT) for column in columns], lines)


def settings_rows(runs: Compared) -> list[list[str]]:
    """Return the settings in which the runs differ: name, and the value in each run."""
    own = [_flat({k: v for k, v in run.config.items() if k not in NOT_THE_METHOD}) for run in runs.runs]
    known = [settings for settings in own if settings]
    rows = []
    for name in sorted({name for settings in known for name in settings}):
        if len({json.dumps(settings.get(name), sort_keys=True, default=str) for settings in known}) > 1:
            rows.append([name, *(detail(settings[name]) if name in settings else MISSING for settings in own)])
    return rows


def written(column: str, value: Any) -> str:
    """Write a value of the table."""
    if value is None:
        return MISSING
    if column in TEXT or not is_number(value):
        return str(value)
    return f"{value:,.1f}" if column in ("RankMe", "seconds") else f"{value:,.0f}"


@dataclass(frozen=True)
class Protocol:
    """What records of one protocol of a run have in common, and a table of what they differ in and found."""

    key: str
    name: str
    count: int
    terms: Sequence[tuple[str, str]]
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def protocols(runs: Compared) -> list[tuple[str, list[Protocol]]]:
    """Return the protocols of every run that has records, with its name."""
    found = []
    for place, (name, run) in enumerate(zip(runs.names, runs.runs, strict=True)):
        kinds = dict.fromkeys(record.protocol for record in run.records)
        parts = [_protocol(place, kind, [r for r in run.records if r.protocol == kind]) for kind in kinds]
        if parts:
            found.append((name, parts))
    return found


def detail(value: Any) -> str:
    """Write a value of a record or a setting."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {detail(part)}" for name, part in value.items()) or MISSING
    if isinstance(value, list):
        return ", ".join(detail(part) for part in value) or MISSING
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cell(runs: Compared, group: Group, column: str) -> Cell:
    if column in TEXT:
        values = dict.fromkeys(written(column, runs.table.rows[place][column]) for place in group.places)
        return Cell(", ".join(values))
    found = estimate(runs.table, group.places, column)
    if found is None:
        return Cell(MISSING, "")
    accuracy = column in runs.table.accuracies
    text = f"{100 * found.value:.1f} %" if accuracy else written(column, found.value)
    sure = range_text(found) if accuracy else ""
    if not accuracy and found.kind and found.low != found.high:
        sure = f"± {written(column, found.value - (found.low or 0.0))}"
    key = next(filter(None, (_key_of(runs, place, column) for place in group.places)), "")
    return Cell(text, repr(found.value), key, sure)


def _key_of(runs: Compared, place: int, column: str) -> str:
    """Return the id of the protocol of a number, or nothing where the run has no such number."""
    run = runs.runs[place]
    used = run.used.get(column)
    name = used.protocol if used is not None else OTHERS.get(column, "")
    return _key(place, name) if any(record.protocol == name for record in run.records) else ""


def _key(place: int, protocol: str) -> str:
    return f"run{place}-{re.sub(r'[^a-z0-9_]+', '-', protocol.lower())}"


def _protocol(place: int, name: str, records: Sequence[Record]) -> Protocol:
    flat = [shown(record) for record in records]
    names = [key for key in dict.fromkeys(n for r in flat for n in r) if key != "protocol"]
    always = ("split", "metric", "value")
    common = [n for n in names if n not in always and len({json.dumps(r.get(n, "")) for r in flat}) == 1]
    differing = [*always, *(key for key in names if key not in always and key not in common)]
    terms = [(key, detail(flat[0].get(key))) for key in common]
    rows = [[detail(record[key]) if key in record else MISSING for key in differing] for record in flat]
    return Protocol(_key(place, name), name, len(records), terms, differing, rows)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
