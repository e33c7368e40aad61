"""Lines, points and bars of several runs, drawn with matplotlib on axes that are honest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfsup.report.drawing import new_figure
from selfsup.report.style import DASHES, LINE, PAGE, QUIET, TEXT, colour, marker

WIDTH, HEIGHT = 5.4, 3.1  # inches, of 72 units in a page: letters of a chart can be read on a phone
MARKED = 24  # most points of a line that carry a marker
SMALL = 10  # size of letters
GAP = 0.7  # bars that would have room between two groups


@dataclass(frozen=True)
class Series:
    """Points of one curve.

    Attributes:
        name: Shown when the pointer is over a point.
        style: Number of its colour, marker and dashes.
        points: (x, y), in the order of the line.
        notes: What else is said of each point, or nothing.
    """

    name: str
    style: int
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Bar:
    """A number with a range.

    Attributes:
        name: Shown when the pointer is over it.
        style: Number of its colour and marker.
        value: Its length, from 0.
        text: The value as it is written beside the bar.
        low, high: Ends of the whisker, or None.
    """

    name: str
    style: int
    value: float
    text: str
    low: float | None = None
    high: float | None = None


Group = tuple[str, Sequence[Bar]]


@dataclass(frozen=True)
class Axis:
    """An axis and how far it reaches.

    Attributes:
        title: What it measures.
        log: It is logarithmic; values must be positive.
        zero: It begins at 0.
        least: The least that it spans, so that a small change does not fill the chart; never less than a tenth of the
            largest value, or of a decade.
        within: It goes no further than these.
        whole: It counts, and has ticks at whole numbers alone.
    """

    title: str = ""
    log: bool = False
    zero: bool = False
    least: float = 0.0
    within: tuple[float, float] = (-math.inf, math.inf)
    whole: bool = False

    def limits(self, values: Sequence[float]) -> tuple[float, float]:
        """Return where an axis with these values begins and ends."""
        low, high = min(values), max(values)
        if self.log:
            low, high = math.log10(low), math.log10(high)
        if self.zero:
            low, high = min(low, 0.0), max(high, 0.0)
        floor = 0.1 if self.log else 0.1 * max(abs(low), abs(high)) or 1.0
        missing = max(self.least, floor) - (high - low)
        if missing > 0:
            spare = missing / 2
            low, high = (low, high + 2 * spare) if self.zero and low == 0 else (low - spare, high + spare)
        spare = 0.04 * (high - low)
        low, high = low if self.zero and low == 0 else low - spare, high + spare
        begin, end = self.within
        moved = max(0.0, begin - low) - max(0.0, high - end)
        low, high = max(begin, low + moved), min(end, high + moved)
        return (10**low, 10**high) if self.log else (low, high)


def line_figure(
    series: Sequence[Series], across: Axis, up: Axis, *, join: bool = True, names: Sequence[str] | None = None
) -> tuple[Any, dict[str, Sequence[str]]]:
    """Draw curves, or points alone.

    Args:
        series: At least one point in all.
        across, up: The axes.
        join: Join the points of a series by a line.
        names: Names of x = 0, 1, …; None writes numbers.

    Returns:
        The figure, and what is said of each marker, by the gid of its series.
    """
    figure = new_figure(WIDTH, HEIGHT + (0.5 if names else 0.0))
    return figure, draw_lines(figure.add_subplot(), series, across, up, join=join, names=names)


def draw_lines(
    axes: Any,
    series: Sequence[Series],
    across: Axis,
    up: Axis,
    *,
    join: bool = True,
    names: Sequence[str] | None = None,
) -> dict[str, Sequence[str]]:
    """Draw curves into a panel, and return what is said of each marker; see :func:`line_figure`."""
    limits = (
        across.limits([x for s in series for x, _ in s.points]),
        up.limits([y for s in series for _, y in s.points]),
    )
    said: dict[str, Sequence[str]] = {}
    for place, one in enumerate(series):
        if join and len(one.points) > 1:
            dashes = DASHES[one.style % len(DASHES)]
            axes.plot(*zip(*one.points, strict=True), color=colour(one.style), linestyle=dashes, linewidth=1.5)
        step = math.ceil(len(one.points) / MARKED) if join else 1
        shown = [
            number
            for number in range(0, len(one.points), step)
            if all(low <= value <= high for value, (low, high) in zip(one.points[number], limits, strict=True))
        ]
        if not shown:
            continue
        gid = f"points-{axes.get_subplotspec().num1}-{place}"
        look = {"marker": marker(one.style), "markersize": 5.5, "markeredgewidth": 0.6}
        axes.plot(
            *zip(*(one.points[number] for number in shown), strict=True),
            color=colour(one.style),
            linestyle="",
            markeredgecolor=PAGE,
            gid=gid,
            **look,
        )
        said[gid] = [_said(one, number, names) for number in shown]
    set_axis(axes, across, limits[0], horizontal=True)
    set_axis(axes, up, limits[1], horizontal=False)
    if names:
        axes.set_xticks(range(len(names)), [plain(name) for name in names], rotation=30, ha="right")
    tidy(axes)
    return said


def bar_figure(groups: Sequence[Group], across: Axis) -> tuple[Any, dict[str, str]]:
    """Draw horizontal bars with their ranges, those of a group under its name.

    Args:
        groups: Names and bars.
        across: The axis of the values.

    Returns:
        The figure, and what is said of each bar, by its gid.
    """
    return bar_panels([(groups, across)])


def bar_panels(panels: Sequence[tuple[Sequence[Group], Axis]]) -> tuple[Any, dict[str, str]]:
    """Draw several charts of bars, one below the other; see :func:`bar_figure`."""
    rows = [max(3.0, sum(len(bars) + GAP for _, bars in groups)) for groups, _ in panels]
    figure = new_figure(WIDTH, sum(0.6 + 0.2 * count for count in rows))
    said: dict[str, str] = {}
    for axes, (groups, across) in zip(
        figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows)[:, 0], panels, strict=True
    ):
        _draw_bars(axes, groups, across, said)
    return figure, said


def _draw_bars(axes: Any, groups: Sequence[Group], across: Axis, said: dict[str, str]) -> None:
    ends = [end for _, bars in groups for bar in bars for end in (bar.value, bar.low, bar.high) if end is not None]
    low, high = across.limits([*ends, 0.0])
    ticks = []
    y = 0.0
    for name, bars in groups:
        ticks.append((y + (len(bars) - 1) / 2, plain(name)))
        for bar in bars:
            gid = f"bar-{len(said)}"
            axes.barh(y, bar.value, 0.72, color=colour(bar.style), alpha=0.45)
            axes.plot(
                [bar.value], [y], marker(bar.style), color=colour(bar.style), markersize=5.5, gid=gid, clip_on=False
            )
            right = max(bar.value, 0.0)
            if bar.low is not None and bar.high is not None:
                reach = [[bar.value - bar.low], [bar.high - bar.value]]
                axes.errorbar([bar.value], [y], xerr=reach, color=TEXT, linewidth=1.1, capsize=2.5)
                right = max(right, bar.high)
            axes.annotate(
                bar.text, (right, y), (7, 0), textcoords="offset points", va="center", fontsize=SMALL, color=TEXT
            )
            said[gid] = f"{name}, {bar.name}: {bar.text}"
            y += 1.0
        y += GAP
    set_axis(axes, across, (low, high + 0.12 * (high - low)), horizontal=True)
    axes.set_ylim(y - GAP - 0.4, -0.6)
    axes.set_yticks(*zip(*ticks, strict=True))
    tidy(axes, across="x")


def set_axis(axes: Any, axis: Axis, limits: tuple[float, float], *, horizontal: bool) -> None:
    """Give an axis its title, its ends, and few round ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    side = axes.xaxis if horizontal else axes.yaxis
    if axis.log:
        (axes.set_xscale if horizontal else axes.set_yscale)("log")
        narrow = math.log10(limits[1] / limits[0]) < 2.5
        side.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=8))
        side.set_minor_locator(NullLocator())
    else:
        steps = [1, 2, 5, 10] if axis.whole else [1, 2, 2.5, 5, 10]
        side.set_major_locator(MaxNLocator(5, steps=steps, integer=axis.whole))
    side.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
    (axes.set_xlim if horizontal else axes.set_ylim)(*limits)
    side.set_label_text(axis.title, fontsize=SMALL, color=TEXT)


def tidy(axes: Any, across: str = "both") -> None:
    """Draw grid, frame and letters in the colours of a page."""
    axes.grid(axis=across, color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(color=QUIET, labelcolor=TEXT, labelsize=SMALL, length=3)


def plain(text: str) -> str:
    """Return a text as matplotlib writes it letter by letter: no formulas, and nothing that no file can hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text).replace("$", r"\$")


def number_text(value: float) -> str:
    """Write a number as short as it can be read."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _said(one: Series, number: int, names: Sequence[str] | None) -> str:
    x, y = one.points[number]
    note = f", {one.notes[number]}" if one.notes else ""
    at = "" if names else f"{number_text(x)}, "
    return f"{one.name}{note}: {at}{number_text(y)}"
