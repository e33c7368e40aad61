"""What classes keep, and how near their confusable class is, over how often they were seen."""

from __future__ import annotations

from typing import Any

from selfsup.report.drawing import BLUE, ORANGE, Evaluated, chart, class_name, new_figure


@chart("minorities")
def minorities_chart(evaluated: Evaluated) -> Any:
    """Draw the ``minorities`` records: one point a class."""
    records = [r for r in evaluated.of("minorities") if r.metric == "allocation_gap"]
    if not records:
        return None
    classes = records[-1]["classes"]
    figure = new_figure(10.0, 4.0)
    panels = figure.subplots(1, 2)
    labels = {
        "kept": ("share kept against the confusable class", BLUE),
        "collapse": ("cosine with the confusable class's centre", ORANGE),
    }
    for panel, (key, (label, colour)) in zip(panels, labels.items(), strict=True):
        panel.scatter([one["count"] for one in classes.values()], [one[key] for one in classes.values()], color=colour)
        if len(classes) <= 20:
            for name, one in classes.items():
                text = class_name(int(name), evaluated.classes)
                panel.annotate(text, (one["count"], one[key]), (3, 3), textcoords="offset points", fontsize=7)
        panel.set(xscale="log", xlabel="training images of the class", ylabel=label)
        panel.grid(alpha=0.3)
    return figure
