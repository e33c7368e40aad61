"""Bars of a share for each class, label or corruption, a group of bars each: what such charts have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfsup.report.compared import Charted, Compared
from selfsup.report.plots import Axis, Bar, bar_figure

SHOWN = 20  # most groups of bars that are drawn; the data have all


@dataclass(frozen=True)
class Percentages:
    """What was measured.

    Attributes:
        measure: Such as ``accuracy``.
        one, more: What it was measured of: ``class`` and ``classes``.
        caption: What a reader has to know.
    """

    measure: str
    one: str
    more: str
    caption: str

    def charted(
        self,
        runs: Compared,
        values: Sequence[tuple[str, Mapping[int, float]]],
        heads: Sequence[str] = (),
        rows: Sequence[Sequence[Any]] = (),
    ) -> Sequence[Charted]:
        """Draw the lowest of them: of each configuration the mean over its seeds, with whiskers to the ends.

        Args:
            runs: The runs.
            values: Names, of which two may be alike, and shares by place of the run, in the order to draw; nothing is
                drawn of nothing.
            heads, rows: The data beside the chart; those of ``values`` by default.
        """
        if not values:
            return []
        means = [sum(own.values()) / len(own) for _, own in values]
        lowest = sorted(sorted(range(len(values)), key=means.__getitem__)[:SHOWN])
        groups = [(name, _bars(runs, own)) for name, own in (values[number] for number in lowest)]
        caption = self.caption
        if len(values) > SHOWN:
            caption += f" Of {len(values)} {self.more} these {SHOWN} have the lowest mean; the data have all."
        if any(bar.low is not None for _, bars in groups for bar in bars):
            caption += " Whiskers go from the lowest to the highest seed."
        figure, words = bar_figure(groups, Axis(f"{self.measure}, %", zero=True, least=100.0))
        all_of_them = [
            (name, runs.names[place], f"{100 * value:.1f} %") for name, own in values for place, value in own.items()
        ]
        return [
            Charted(
                f"{self.measure} by {self.one}",
                figure,
                caption,
                f"{self.measure[0].upper()}{self.measure[1:]} of each {self.one} as bars; the data follow",
                heads or (self.one, "run", self.measure),
                rows or all_of_them,
                words,
                frozenset(bar.style for _, bars in groups for bar in bars),
            )
        ]


def _bars(runs: Compared, values: Mapping[int, float]) -> list[Bar]:
    bars = []
    for group in runs.groups:
        own = [100 * values[place] for place in group.places if place in values]
        if own:
            mean = sum(own) / len(own)
            ends = (min(own), max(own)) if len(own) > 1 else (None, None)
            bars.append(Bar(group.label, group.style, mean, f"{mean:.0f}", *ends))
    return bars
