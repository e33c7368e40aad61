"""Runs as the charts of a page see them, and the charts there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfsup.eval.record import Record
from selfsup.report.comparison import Run, Table, pick
from selfsup.report.estimates import Group, seed_groups
from selfsup.report.plots import SMALL, Series, plain
from selfsup.report.style import colour, marker


@dataclass(frozen=True)
class Compared:
    """The runs of a page.

    Attributes:
        table: Their table.
        groups: Runs that differ in the seed alone, put together.
        notes: What a reader has to know; charts add to them.
    """

    table: Table
    groups: Sequence[Group]
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> Sequence[Run]:
        """The runs, in the order of the table."""
        return self.table.runs

    @property
    def names(self) -> list[str]:
        """Names of the runs."""
        return [str(row["run"]) for row in self.table.rows]

    @property
    def styles(self) -> list[int]:
        """Number of colour and marker of each run: that of its group."""
        found = {place: group.style for group in self.groups for place in group.places}
        return [found[place] for place in range(len(self.runs))]

    def series(self, place: int, points: Sequence[tuple[float, float]], notes: Sequence[str] = ()) -> Series:
        """Return points of a run as a curve."""
        return Series(self.names[place], self.styles[place], points, notes)


def compared(table: Table) -> Compared:
    """Return the runs of a table for a page."""
    return Compared(table, seed_groups(table), list(table.notes))


def alone(records: Sequence[Record]) -> Compared:
    """Return one evaluation, for the charts of several."""
    run = Run(Path(), {}, list(records), {})
    return Compared(Table([{"run": "this run"}], runs=[run]), [Group("this run", (0,), 0)])


@dataclass(frozen=True)
class Charted:
    """A chart of several runs.

    Attributes:
        name: What it shows.
        figure: Of matplotlib.
        caption: What a reader has to know.
        label: What a screen reader says of it.
        heads, rows: Its data as a table.
        words: What is shown over its markers, see :func:`~selfsup.report.inline.inline_svg`.
        styles: Of the groups that are in it, for the legend.
    """

    name: str
    figure: Any
    caption: str
    label: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]
    words: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    styles: frozenset[int] = frozenset()


def with_legend(chart: Charted, runs: Compared) -> Any:
    """Return the figure of a chart with a legend of the groups in it, for a file; a page has a legend of its own."""
    from matplotlib.lines import Line2D

    shown = [group for group in runs.groups if group.style in chart.styles]
    signs = [
        Line2D([], [], linestyle="", marker=marker(g.style), markersize=6, color=colour(g.style), label=plain(g.label))
        for g in shown
    ]
    longest = max((len(group.label) for group in shown), default=0)
    columns = max(1, min(len(shown), 60 // (longest + 6)))
    chart.figure.legend(handles=signs, loc="outside upper left", frameon=False, ncols=columns, fontsize=SMALL)
    return chart.figure


PageChart = Callable[[Compared], Sequence[Charted]]


@dataclass(frozen=True)
class Listed:
    """A chart of the page.

    Attributes:
        title: Heading of its section.
        place: Sections stand in this order.
        draw: Gives what there is to show, or nothing.
    """

    title: str
    place: int
    draw: PageChart


#: Charts of the page by the name of their file.
PAGE_CHARTS: dict[str, Listed] = {}


def page_chart(title: str, place: int) -> Callable[[PageChart], PageChart]:
    """Decorate a function from the runs to charts, so that the page has a section with them.

    Args:
        title: Heading of the section.
        place: Sections stand in this order: accuracies before 20, training 20, classes 30, features 40 and above.
    """

    def add(draw: PageChart) -> PageChart:
        PAGE_CHARTS[draw.__module__.rpartition(".")[2]] = Listed(title, place, draw)
        return draw

    return add


def by_place(run: Run, protocol: str, metric: str, key: str) -> dict[str, Record]:
    """Return the record to report of every layer or operation, in the order they were measured in."""
    places: dict[str, list[Record]] = {}
    for record in run.records:
        if key in record:
            places.setdefault(str(record[key]), []).append(record)
    found = {place: pick(records, protocol, metric) for place, records in places.items()}
    return {place: record for place, record in found.items() if record is not None}
