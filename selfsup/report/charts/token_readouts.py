"""Accuracy by which tokens are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfsup.report.compared import Charted, Compared, alone, page_chart
from selfsup.report.drawing import Evaluated, chart
from selfsup.report.estimates import is_number
from selfsup.report.plots import Axis, Bar, bar_panels

TITLES = {"knn": "kNN accuracy, %", "linear": "linear probe, %"}


@page_chart("Which tokens are read", place=57)
def token_readouts_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the ``token_readouts`` records: accuracy of kNN and of the linear probe for each readout."""
    values: dict[tuple[str, str, int], float] = {}
    for place, run in enumerate(runs.runs):
        for record in run.records:
            if record.protocol == "token_readouts" and is_number(record.value):
                values[str(record.get("classifier")), str(record.get("readout")), place] = 100 * record.value
    panels, bars = [], []
    for classifier, title in TITLES.items():
        groups = []
        for readout in dict.fromkeys(name for kind, name, _ in values if kind == classifier):
            found = [(place, values.get((classifier, readout, place))) for place in range(len(runs.runs))]
            own = [
                Bar(runs.names[place], runs.styles[place], value, f"{value:.1f}")
                for place, value in found
                if value is not None
            ]
            groups.append((readout, own))
            bars += own
        if groups:
            panels.append((groups, Axis(title, zero=True, within=(0.0, 100.0))))
    if not panels:
        return []
    figure, words = bar_panels(panels)
    rows = [(runs.names[place], readout, kind, f"{value:.2f} %") for (kind, readout, place), value in values.items()]
    return [
        Charted(
            "token_readouts",
            figure,
            "Accuracy of class token, mean of the patches, both side by side, and those of the last blocks.",
            "Accuracy by readout as bars; the data follow",
            ("run", "readout", "classifier", "accuracy"),
            rows,
            words,
            frozenset(bar.style for bar in bars),
        )
    ]


@chart("token_readouts")
def token_readouts_of_one(evaluated: Evaluated) -> Any:
    """Draw the readouts of one evaluation."""
    drawn = token_readouts_chart(alone(evaluated.records))
    return drawn[0].figure if drawn else None
