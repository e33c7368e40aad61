"""Charts for a page: lines, points and bars as SVG text whose colours come from the page's style sheet.

Every series has a marker shape and, as a line, a pattern of dashes beside its colour, so that none is told by colour
alone. The classes ``s0`` to ``s7`` name the colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 8
DASHES = ("", "7 4", "2 3", "9 3 2 3", "14 4")
WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 46
LABELS = 120  # room for the names of bars
ROW, GAP = 17, 14  # a bar, and the space between two groups of them


@dataclass(frozen=True)
class Series:
    """Points of one curve.

    Attributes:
        name: Shown when the pointer is over a point.
        style: Number of its colour, marker and dashes.
        points: (x, y), in the order of the line.
        notes: What else is told of each point, or nothing.
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


def line_chart(
    series: Sequence[Series],
    label: str,
    x_title: str,
    y_title: str,
    *,
    log: bool = False,
    lines: bool = True,
    x_names: Sequence[str] | None = None,
) -> str:
    """Draw curves, or points alone.

    Args:
        series: At least one point in all; with ``log`` only positive ones.
        label: What a screen reader says of the chart.
        x_title, y_title: Titles of the axes.
        log: Both axes are logarithmic.
        lines: Join the points of a series.
        x_names: Names of x = 0, 1, …; None writes numbers.
    """
    points = [point for one in series for point in one.points]
    scales = []
    for values, start, end in (
        ([x for x, _ in points], LEFT, WIDTH - RIGHT),
        ([y for _, y in points], HEIGHT - BOTTOM, TOP),
    ):
        scales.append(_Scale(min(values), max(values), start, end, log))
    across, up = scales
    marks = [(float(place), name) for place, name in enumerate(x_names)] if x_names else across.ticks()
    bottom = BOTTOM if not x_names else BOTTOM + 40
    parts = [_axis(up.ticks(), up, horizontal=False), _axis(marks, across, horizontal=True, slanted=bool(x_names))]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + bottom - 8, x_title, "middle"))
    parts.append(
        f'<g transform="translate(14 {(HEIGHT - BOTTOM + TOP) / 2}) rotate(-90)">{_text(0, 0, y_title, "middle")}</g>'
    )
    for one in series:
        places = [(across.place(x), up.place(y)) for x, y in one.points]
        if lines and len(places) > 1:
            corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            dashes = DASHES[one.style % len(DASHES)]
            parts.append(f'<polyline class="line {colour(one.style)}" stroke-dasharray="{dashes}" points="{corners}"/>')
        for number, ((x, y), (place_x, place_y)) in enumerate(zip(one.points, places, strict=True)):
            note = f", {one.notes[number]}" if one.notes else ""
            words = f"{one.name}{note}: {number_text(x)}, {number_text(y)}"
            parts.append(marker(one.style, place_x, place_y, 4.5 if len(places) <= 30 else 3, words))
    return _svg(HEIGHT - BOTTOM + bottom, label, parts)


def bar_chart(groups: Sequence[tuple[str, Sequence[Bar]]], label: str, x_title: str, most: float) -> str:
    """Draw horizontal bars, those of a group under its name.

    Args:
        groups: Names and bars.
        label: What a screen reader says of the chart.
        x_title: Title of the axis.
        most: The axis ends there, or at the largest value where that is more; it begins at 0 or the smallest.
    """
    bars = [bar for _, group in groups for bar in group]
    ends = [end for bar in bars for end in (bar.value, bar.low, bar.high) if end is not None]
    scale = _Scale(min(0.0, *ends), max(most, *ends), LABELS, WIDTH - 64, padding=0.0)
    height = TOP + sum(ROW * len(group) + GAP for _, group in groups)
    parts = [_axis(scale.ticks(), scale, horizontal=True, bottom=height)]
    y = float(TOP)
    for name, group in groups:
        parts.append(_text(LABELS - 10, y + ROW * len(group) / 2 + 4, name, "end"))
        for bar in group:
            zero, end, middle = scale.place(0.0), scale.place(bar.value), y + ROW / 2
            box = f'x="{min(zero, end):.1f}" y="{y + 3:.1f}" width="{abs(end - zero):.1f}" height="{ROW - 6}"'
            parts.append(f'<rect class="bar {colour(bar.style)}" {box}/>')
            right = max(zero, end)
            if bar.low is not None and bar.high is not None:
                low, high = scale.place(bar.low), scale.place(bar.high)
                right = max(right, high)
                whisker = f"M{low:.1f} {middle - 4}v8M{low:.1f} {middle}H{high:.1f}M{high:.1f} {middle - 4}v8"
                parts.append(f'<path class="whisker" d="{whisker}"/>')
            parts.append(marker(bar.style, end, middle, 4.5, f"{name}, {bar.name}: {bar.text}"))
            parts.append(_text(right + 9, middle + 4, bar.text, "start"))
            y += ROW
        y += GAP
    parts.append(_text((LABELS + WIDTH - 64) / 2, height + 36, x_title, "middle"))
    return _svg(height + 44, label, parts)


def swatch(style: int, *, line: bool = True) -> str:
    """Return a piece of a series' line with its marker, for a legend."""
    dashes = DASHES[style % len(DASHES)]
    stroke = f'<path class="line {colour(style)}" stroke-dasharray="{dashes}" d="M1 8H43"/>' if line else ""
    left, wide = (0, 44) if line else (14, 16)
    shape = f"{stroke}{marker(style, 22, 8, 4.5)}"
    return f'<svg class="swatch" viewBox="{left} 0 {wide} 16" width="{wide}" aria-hidden="true">{shape}</svg>'


def marker(style: int, x: float, y: float, radius: float, words: str = "") -> str:
    """Return the shape of a series: one of seven, so that colour and shape together repeat after 56 series."""
    told = f"<title>{escape(words)}</title>" if words else ""
    attributes = f'class="marker {colour(style)}"'
    shape = style % 7
    if shape == 0:
        return f'<circle {attributes} cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{told}</circle>'
    shapes: dict[int, list[tuple[float, float]]] = {
        1: [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        2: [(0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
        3: [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)],
        4: [(0, 1.2), (1.15, -0.9), (-1.15, -0.9)],
        5: _turned([(-0.4, -1.3), (0.4, -1.3), (0.4, -0.4)]),
        6: [(math.sin(turn) * size, -math.cos(turn) * size) for turn, size in _star()],
    }
    points = " ".join(f"{x + radius * dx:.1f},{y + radius * dy:.1f}" for dx, dy in shapes[shape])
    return f'<polygon {attributes} points="{points}">{told}</polygon>'


def colour(style: int) -> str:
    """Return the class of a series' colour."""
    return f"s{style % COLOURS}"


def number_text(value: float) -> str:
    """Write a number as short as it can be read."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class _Scale:
    """From values to places along an axis."""

    def __init__(
        self, low: float, high: float, start: float, end: float, log: bool = False, padding: float = 0.04
    ) -> None:
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            spare = 0.1 * abs(low) or 0.5
            low, high = low - spare, high + spare
        spare = padding * (high - low)
        self.low, self.high, self.start, self.end, self.log = low - spare, high + spare, start, end, log

    def place(self, value: float) -> float:
        """Return where a value is."""
        share = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Return round values on the axis and how they are written."""
        if self.log:
            return [(value, number_text(value)) for value in self._decades()]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (self.high - self.low) / (factor * step) <= 6)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(place * step, number_text(place * step)) for place in range(first, last + 1)]

    def _decades(self) -> list[float]:
        exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
        step = max(1, len(exponents) // 7)
        factors = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        values = [float(f"{factor}e{exponent}") for exponent in exponents[::step] for factor in factors]
        return [value for value in values if self.low <= math.log10(value) <= self.high]


def _axis(
    marks: Sequence[tuple[float, str]],
    scale: _Scale,
    *,
    horizontal: bool,
    bottom: float = HEIGHT - BOTTOM,
    slanted: bool = False,
) -> str:
    parts = []
    for value, name in marks:
        place = scale.place(value)
        if not horizontal:
            parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 8, place + 4, name, "end"))
            continue
        parts.append(f'<path class="grid" d="M{place:.1f} {TOP}V{bottom}"/>')
        if slanted:
            text = _text(0, 0, name, "end")
            parts.append(f'<g transform="translate({place + 4:.1f} {bottom + 16}) rotate(-30)">{text}</g>')
        else:
            parts.append(_text(place, bottom + 17, name, "middle"))
    return "".join(parts)


def _turned(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a corner of a cross in all four directions."""
    found: list[tuple[float, float]] = []
    for _ in range(4):
        found += corners
        corners = [(-y, x) for x, y in corners]
    return found


def _star() -> list[tuple[float, float]]:
    return [(math.pi * corner / 5, 1.5 if corner % 2 == 0 else 0.65) for corner in range(10)]


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
