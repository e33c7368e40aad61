"""The accuracy of each class."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.report.compared import Charted, Compared, page_chart
from selfsup.report.comparison import pick
from selfsup.report.drawing import class_name
from selfsup.report.estimates import is_number
from selfsup.report.plots import Axis, Bar, bar_figure

SHOWN = 20  # most classes that are drawn; the data have all


@page_chart("Accuracy by class", place=30)
def per_class_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the accuracy of the linear probe on the images of each class: a mean over the seeds of a configuration."""
    values: dict[int, dict[int, float]] = {}  # by label and run
    names: dict[int, str] = {}
    for place, run in enumerate(runs.runs):
        record = pick([r for r in run.records if "per_class" in r.found], "linear_probe", "top1")
        for text, value in ({} if record is None else record["per_class"]).items():
            if str(text).isdecimal() and is_number(value):
                values.setdefault(int(text), {})[place] = float(value)
                names.setdefault(int(text), class_name(int(text), run.classes))
    if not values:
        return []
    worst_first = sorted(values, key=lambda label: sum(values[label].values()) / len(values[label]))
    groups = []
    for label in sorted(worst_first[:SHOWN]):
        bars = []
        for group in runs.groups:
            own = [100 * values[label][place] for place in group.places if place in values[label]]
            if own:
                mean = sum(own) / len(own)
                ends = (min(own), max(own)) if len(own) > 1 else (None, None)
                bars.append(Bar(group.label, group.style, mean, f"{mean:.0f}", *ends))
        groups.append((names[label], bars))
    caption = "Accuracy of the linear probe on the scored images of each class, in percent."
    if len(values) > SHOWN:
        caption += f" Of {len(values)} classes these {SHOWN} have the lowest mean; the data have all."
    if any(bar.low is not None for _, bars in groups for bar in bars):
        caption += " Whiskers go from the lowest to the highest seed."
    figure, words = bar_figure(groups, Axis("accuracy, %", zero=True, least=100.0))
    rows = [
        (names[label], runs.names[place], f"{100 * value:.1f} %")
        for label in sorted(values)
        for place, value in values[label].items()
    ]
    return [
        Charted(
            "accuracy by class",
            figure,
            caption,
            "Accuracy of each class as bars; the data follow",
            ("class", "run", "accuracy"),
            rows,
            words,
            frozenset(bar.style for _, bars in groups for bar in bars),
        )
    ]
