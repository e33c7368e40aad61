"""The accuracy of each class."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.report.compared import Charted, Compared, page_chart
from selfsup.report.comparison import pick
from selfsup.report.drawing import class_name
from selfsup.report.estimates import is_number
from selfsup.report.percentages import Percentages

ACCURACIES = Percentages(
    "accuracy", "class", "classes", "Accuracy of the linear probe on the scored images of each class, in percent."
)


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
    return ACCURACIES.charted(runs, [(names[label], values[label]) for label in sorted(values)])
