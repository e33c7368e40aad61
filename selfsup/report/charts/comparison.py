"""The accuracies of several runs."""

from __future__ import annotations

import math
from typing import Any

from selfsup.report.comparison import Table
from selfsup.report.drawing import new_figure


def comparison_chart(table: Table) -> Any:
    """Draw the accuracies of a comparison as bars, one group of bars a run."""
    measures = [name for name in table.accuracies if any(row[name] is not None for row in table.rows)]
    names = [str(row["run"]) for row in table.rows]
    figure = new_figure(max(5.0, 1.6 + 1.3 * len(names)), 4.2)
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(measures))
    for place, measure in enumerate(measures):
        heights = [100 * float(row[measure]) if row[measure] is not None else math.nan for row in table.rows]
        left = [i - 0.4 + width * (place + 0.5) for i in range(len(names))]
        bars = axes.bar(left, heights, width * 0.94, label=measure)
        texts = ["–" if math.isnan(height) else f"{height:.1f}" for height in heights]
        axes.bar_label(bars, labels=texts, fontsize=8, padding=2)
    longest = max((len(name) for name in names), default=0)
    axes.set_xticks(
        range(len(names)), names, rotation=25 if longest > 12 else 0, ha="right" if longest > 12 else "center"
    )
    axes.set_ylabel("accuracy or mIoU, %" if "mIoU" in measures else "accuracy, %")
    axes.set_ylim(0, 109)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if measures:
        axes.legend(frameon=False, ncols=len(measures), loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure
