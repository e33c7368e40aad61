"""What the features do under each augmentation."""

from __future__ import annotations

from typing import Any

from selfsup.report.drawing import BLUE, ORANGE, Evaluated, chart, new_figure


@chart("invariance")
def invariance_chart(evaluated: Evaluated) -> Any:
    """Draw the ``invariance`` records: invariance and equivariance to each operation."""
    records = evaluated.of("invariance")
    if not records:
        return None
    operations = list(dict.fromkeys(record["operation"] for record in records))
    values = {(record["operation"], record["metric"]): record["value"] for record in records}
    figure = new_figure(6.4, 0.42 * len(operations) + 1.3)
    axes = figure.add_subplot()
    for offset, metric, colour in ((-0.2, "invariance", BLUE), (0.2, "equivariance", ORANGE)):
        places = [number + offset for number in range(len(operations))]
        axes.barh(places, [values[name, metric] for name in operations], height=0.38, color=colour, label=metric)
    axes.set_yticks(range(len(operations)), operations)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(min(0.0, *values.values()) if values else 0.0, 1.02)
    axes.set_xlabel("0: as far as another image; 1: does not move (invariance), moves alike (equivariance)", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure
