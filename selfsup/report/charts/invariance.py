"""What the features do under each augmentation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from selfsup.report.compared import Charted, Compared, alone, by_place, page_chart
from selfsup.report.drawing import Evaluated, chart
from selfsup.report.estimates import is_number
from selfsup.report.plots import Axis, Bar, bar_panels

MEANINGS = {
    "invariance": "1: the operation moves no feature; 0: it moves them as far apart as other images are.",
    "equivariance": "1: the operation moves all features by one rotation; 0: each in its own way.",
}


@page_chart("Invariance", place=56)
def invariance_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the ``invariance`` records: invariance and equivariance to each operation."""
    values: dict[tuple[str, str, int], float] = {}
    for metric in MEANINGS:
        for place, run in enumerate(runs.runs):
            for operation, record in by_place(run, "invariance", metric, "operation").items():
                if is_number(record.value):
                    values[metric, operation, place] = float(record.value)
    panels = []
    bars: list[Bar] = []
    for metric in dict.fromkeys(metric for metric, _, _ in values):
        groups = []
        for operation in dict.fromkeys(operation for one, operation, _ in values if one == metric):
            own = []
            for group in runs.groups:
                keys = [(metric, operation, place) for place in group.places]
                found = [values[key] for key in keys if key in values]
                if found:
                    mean, spread = statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None
                    ends = (None, None) if spread is None else (mean - spread, mean + spread)
                    own.append(Bar(group.label, group.style, mean, f"{mean:.2f}", *ends))
            groups.append((operation, own))
            bars += own
        panels.append((groups, Axis(metric, zero=True, least=1.0)))
    if not panels:
        return []
    caption = "What the features do under one augmentation at a time. "
    caption += " ".join(f"{metric.capitalize()}: {meaning}" for metric, meaning in MEANINGS.items())
    if any(bar.low is not None for bar in bars):
        caption += " Whiskers are the standard deviation over seeds."
    figure, words = bar_panels(panels)
    rows = [
        (runs.names[place], operation, metric, f"{value:.3f}") for (metric, operation, place), value in values.items()
    ]
    return [
        Charted(
            "invariance",
            figure,
            caption,
            "Invariance and equivariance of the features to each augmentation as bars; the data follow",
            ("run", "operation", "measure", "value"),
            rows,
            words,
            frozenset(bar.style for bar in bars),
        )
    ]


@chart("invariance")
def invariance_of_one(evaluated: Evaluated) -> Any:
    """Draw the invariance of one evaluation."""
    drawn = invariance_chart(alone(evaluated.records))
    return drawn[0].figure if drawn else None
