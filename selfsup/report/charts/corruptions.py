"""The accuracy under each corruption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfsup.report.compared import Charted, Compared, alone, page_chart
from selfsup.report.drawing import Evaluated, chart
from selfsup.report.estimates import is_number
from selfsup.report.percentages import Percentages

WORDS = {"knn": "kNN", "linear_probe": "linear probe"}
ACCURACIES = Percentages(
    "accuracy",
    "corruption",
    "corruptions",
    "Accuracy of the linear probe on corrupted images, its training images clean: the mean over the strengths, in "
    "percent.",
)


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
                values.setdefault(name.replace("_", " "), {})[place] = float(record.value)
            rows.append((runs.names[place], WORDS.get(classifier, classifier), name, record.text(1)))
    return ACCURACIES.charted(runs, list(values.items()), ("run", "classifier", "corruption", "accuracy"), rows)


@chart("corruptions")
def corruptions_of_one(evaluated: Evaluated) -> Any:
    """Draw the corruptions of one evaluation."""
    drawn = corruptions_chart(alone(evaluated.records))
    return drawn[0].figure if drawn else None
