"""The average precision of each label, where images have several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfsup.report.compared import Charted, Compared, alone, page_chart
from selfsup.report.comparison import pick
from selfsup.report.drawing import Evaluated, chart
from selfsup.report.estimates import is_number
from selfsup.report.percentages import Percentages

PRECISIONS = Percentages(
    "average precision", "label", "labels", "Average precision of the scored images for each label, in percent."
)


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
    return PRECISIONS.charted(runs, sorted(values.items()))


@chart("per_label")
def per_label_of_one(evaluated: Evaluated) -> Any:
    """Draw the labels of one evaluation."""
    drawn = per_label_chart(alone(evaluated.records))
    return drawn[0].figure if drawn else None
