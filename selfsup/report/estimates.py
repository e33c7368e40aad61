"""Numbers of several runs with how sure they are: seeds put together, intervals, accuracy over time."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from selfsup.errors import UserError
from selfsup.report.comparison import MISSING, Run, Table
from selfsup.tables import console_table

NORMAL_95 = 1.959963984540054
NOT_THE_METHOD = ("seed", "run_dir", "resume", "logger")  # settings that runs of one group may differ in


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is.

    Attributes:
        value: The value of one run, or the mean over seeds.
        low, high: Ends of the range, or None where there is none.
        kind: ``binomial 95 %``, ``std over seeds``, or nothing.
    """

    value: float
    low: float | None = None
    high: float | None = None
    kind: str = ""


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed, or a single run.

    Attributes:
        label: Its name on the page.
        places: Rows of the table.
        style: Number of its colour, marker and dashes.
    """

    label: str
    places: tuple[int, ...]
    style: int


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the binomial 95 % interval of a share of ``count`` trials (Wilson, JASA 1927).

    ``(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)`` with ``z = 1.96``; within [0, 1] also for shares of 0 and 1.
    """
    square = NORMAL_95**2 / count
    half = NORMAL_95 * math.sqrt(share * (1 - share) / count + square / (4 * count))
    middle = share + square / 2
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def seed_groups(table: Table) -> list[Group]:
    """Put runs together that differ in nothing but the seed and were measured in the same way, in the table's order."""
    places: dict[str, list[int]] = {}
    for place, run in enumerate(table.runs):
        places.setdefault(_recipe(run) or f"run {place}", []).append(place)
    parts: list[list[int]] = []
    for members in places.values():
        seeds = [table.rows[place]["seed"] for place in members]
        # the same seed twice is a repetition, which says nothing about seeds
        parts += [members] if len(set(seeds)) == len(seeds) else [[place] for place in members]
    parts.sort()
    labels = [_label(table, part) for part in parts]
    twice = {label for label, count in Counter(labels).items() if count > 1}
    for number, part in enumerate(parts):
        if labels[number] in twice:
            labels[number] += f" ({table.rows[part[0]]['run']})"
    return [Group(label, tuple(part), style) for style, (label, part) in enumerate(zip(labels, parts, strict=True))]


def seeds_table(table: Table) -> str:
    """Return a table of means and deviations over the seeds, or "" where no runs differ in the seed alone."""
    columns = [*table.accuracies, "RankMe"]
    rows = []
    for group in seed_groups(table):
        if len(group.places) == 1:
            continue
        seeds = ", ".join(str(table.rows[place]["seed"]) for place in group.places)
        found = [(column, estimate(table, group.places, column)) for column in columns]
        rows.append([group.label, seeds, *(_mean_text(table, column, mean) for column, mean in found)])
    return console_table(["mean ± deviation", "seeds", *columns], rows) if rows else ""


def _mean_text(table: Table, column: str, found: Estimate | None) -> str:
    if found is None:
        return MISSING
    if column in table.accuracies:
        return f"{100 * found.value:.1f} {range_text(found)} %"
    return f"{found.value:.1f}" if found.high is None else f"{found.value:.1f} ± {found.high - found.value:.1f}"


def estimate(table: Table, places: Sequence[int], column: str) -> Estimate | None:
    """Return the number of a group in a column and its uncertainty, or None where no run of it has the number."""
    found = [place for place in places if is_number(table.rows[place][column])]
    values = [float(table.rows[place][column]) for place in found]
    if not values:
        return None
    if len(values) > 1:
        mean, spread = statistics.fmean(values), statistics.stdev(values)
        return Estimate(mean, mean - spread, mean + spread, "std over seeds")
    record = table.runs[found[0]].used.get(column)
    if record is not None and record["metric"] == "top1" and 0 <= values[0] <= 1:
        count = record.get(f"{record['split']}_images")
        if is_number(count) and count > 0:
            return Estimate(values[0], *wilson_interval(values[0], int(count)), "binomial 95 %")
    return Estimate(values[0])


def range_text(found: Estimate) -> str:
    """Write the range of an accuracy, in percent."""
    if found.low is None or found.high is None:
        return ""
    if found.kind == "std over seeds":
        return f"± {100 * (found.high - found.value):.1f}"
    return f"({100 * found.low:.1f} to {100 * found.high:.1f})"


def accuracy_over_time(run: Run) -> list[tuple[int, float, float]]:
    """Return (step, seconds, online kNN accuracy) of a run's training; nothing where it was not watched or timed."""
    times = {row.get("step"): row.get("seconds") for row in read_numbers(run.folder / "times.csv")}
    found = []
    for row in read_numbers(run.folder / "metrics.csv"):
        step, accuracy = row.get("step"), row.get("online/knn")
        seconds = times.get(step)
        if step is not None and accuracy is not None and seconds is not None:
            found.append((int(step), seconds, accuracy))
    return sorted(found)


def _recipe(run: Run) -> str:
    """Return what a run shares with those that differ in the seed alone, as text; nothing where it is not known."""
    if not run.config:
        return ""
    settings = {name: value for name, value in run.config.items() if name not in NOT_THE_METHOD}
    measured = {column: [record.get("epoch"), record.conditions] for column, record in run.used.items()}
    return json.dumps([settings, measured], sort_keys=True, default=str)


def _label(table: Table, places: Sequence[int]) -> str:
    if len(places) == 1:
        return str(table.rows[places[0]]["run"])
    return f"{table.rows[places[0]]['method']}, {len(places)} seeds"


def read_numbers(path: Path) -> list[dict[str, float]]:
    """Return the numbers of a CSV file, row by row; without what is not finite; a missing file has no rows.

    Raises:
        UserError: It cannot be read as a table.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table ({error}); put it right, or delete it.") from error
    found = []
    for row in rows:
        numbers = {}
        for name, text in row.items():
            try:
                numbers[str(name)] = float(text)
            except (TypeError, ValueError):
                continue
        found.append({name: value for name, value in numbers.items() if math.isfinite(value)})
    return found


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
