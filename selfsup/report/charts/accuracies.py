"""The accuracies of several runs."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.report.compared import Charted, Compared, page_chart
from selfsup.report.comparison import MISSING
from selfsup.report.estimates import estimate, range_text
from selfsup.report.plots import Axis, Bar, bar_figure


@page_chart("Accuracies", place=10)
def accuracies_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the accuracies of the configurations as bars, with their ranges."""
    groups, rows = [], []
    for column in runs.table.accuracies:
        bars = []
        for group in runs.groups:
            found = estimate(runs.table, group.places, column)
            if found is not None:
                text = f"{100 * found.value:.1f} %"
                low, high = (None if end is None else 100 * end for end in (found.low, found.high))
                bars.append(Bar(group.label, group.style, 100 * found.value, text, low, high))
                rows.append((column, group.label, text, range_text(found), found.kind or MISSING))
        if bars:
            groups.append((column, bars))
    if not groups:
        return []
    title = "accuracy or mean IoU, %" if "mIoU" in runs.table.accuracies else "accuracy, %"
    figure, words = bar_figure(groups, Axis(title, zero=True, least=100.0))
    return [
        Charted(
            "accuracies",
            figure,
            "The accuracies of the table; whiskers are its ranges.",
            "Accuracies of the configurations as bars; the data follow",
            ("measure", "configuration", "value", "range", "kind"),
            rows,
            words,
            frozenset(bar.style for _, bars in groups for bar in bars),
        )
    ]
