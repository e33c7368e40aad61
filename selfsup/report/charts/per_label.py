"""The average precision of each label, where images have several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfsup.report.compared import Charted, Compared, alone, page_chart
from selfsup.report.comparison import pick
from selfsup.report.drawing import Evaluated, chart
from selfsup.report.estimates import is_number
from selfsup.report.plots import Axis, Bar, bar_figure

SHOWN = 20  # most labels that are drawn; the data have all


@page_chart("Average precision by label", place=32)
def per_label_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the average precision of each label: of the multi-label probe, or of kNN where no probe was run."""
    values: dict[str, dict[int, float]] = {}  # by label and run
    for place, run in enumerate(runs.runs):
        own = [record for record in run.records if "per_label" in record.found]
        record = pick(own, "multilabel_probe", "map") or pick(own, "multilabel_knn", "map")
        for label, value in ({} if record is None else record["per_label"]).items():
            if is_number(value):
                values.setdefault(str(label), {})[place] = float(value)
    if not values:
        return []
    worst_first = sorted(values, key=lambda label: sum(values[label].values()) / len(values[label]))
    groups = []
    for label in sorted(worst_first[:SHOWN]):
        bars = []
        for group in runs.groups:
            found = [100 * values[label][place] for place in group.places if place in values[label]]
            if found:
                mean = sum(found) / len(found)
                ends = (min(found), max(found)) if len(found) > 1 else (None, None)
                bars.append(Bar(group.label, group.style, mean, f"{mean:.0f}", *ends))
        groups.append((label, bars))
    caption = "Average precision of the scored images for each label, in percent."
    if len(values) > SHOWN:
        caption += f" Of {len(values)} labels these {SHOWN} have the lowest mean; the data have all."
    figure, words = bar_figure(groups, Axis("average precision, %", zero=True, least=100.0))
    return [
        Charted(
            "average precision by label",
            figure,
            caption,
            "Average precision of each label as bars; the data follow",
            ("label", "run", "average precision"),
            [
                (label, runs.names[place], f"{100 * value:.1f} %")
                for label in sorted(values)
                for place, value in values[label].items()
            ],
            words,
            frozenset(bar.style for _, bars in groups for bar in bars),
        )
    ]


@chart("per_label")
def per_label_of_one(evaluated: Evaluated) -> Any:
    """Draw the labels of one evaluation."""
    drawn = per_label_chart(alone(evaluated.records))
    return drawn[0].figure if drawn else None
