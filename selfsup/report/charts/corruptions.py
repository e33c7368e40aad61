"""The accuracy under each corruption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfsup.report.compared import Charted, Compared, alone, page_chart
from selfsup.report.drawing import Evaluated, chart
from selfsup.report.estimates import is_number
from selfsup.report.plots import Axis, Bar, bar_figure

WORDS = {"knn": "kNN", "linear_probe": "linear probe"}


@page_chart("Accuracy under corruption", place=34)
def corruptions_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the ``corruptions`` records of the linear probe, one bar a corruption; the data have kNN as well."""
    values: dict[str, dict[int, float]] = {}  # by corruption and run
    rows = []
    for place, run in enumerate(runs.runs):
        for record in run.records:
            if record.protocol != "corruptions" or not is_number(record.value):
                continue
            name, classifier = str(record.get("corruption")), str(record.get("classifier"))
            if classifier == "linear_probe":
                values.setdefault(name, {})[place] = float(record.value)
            rows.append((runs.names[place], WORDS.get(classifier, classifier), name, record.text(1)))
    if not values:
        return []
    groups = []
    for name, own in values.items():
        bars = []
        for group in runs.groups:
            found = [100 * own[place] for place in group.places if place in own]
            if found:
                mean = sum(found) / len(found)
                ends = (min(found), max(found)) if len(found) > 1 else (None, None)
                bars.append(Bar(group.label, group.style, mean, f"{mean:.0f}", *ends))
        groups.append((name.replace("_", " "), bars))
    figure, words = bar_figure(groups, Axis("accuracy, %", zero=True, least=100.0))
    return [
        Charted(
            "accuracy under corruption",
            figure,
            "Accuracy of the linear probe on corrupted images, its training images clean: the mean over the strengths, "
            "in percent.",
            "Accuracy under each corruption as bars; the data follow",
            ("run", "classifier", "corruption", "accuracy"),
            rows,
            words,
            frozenset(bar.style for _, bars in groups for bar in bars),
        )
    ]


@chart("corruptions")
def corruptions_of_one(evaluated: Evaluated) -> Any:
    """Draw the corruptions of one evaluation."""
    drawn = corruptions_chart(alone(evaluated.records))
    return drawn[0].figure if drawn else None
