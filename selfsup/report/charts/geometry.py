"""Alignment and uniformity of the features."""

from __future__ import annotations

from collections.abc import Sequence

from selfsup.report.compared import Charted, Compared, page_chart
from selfsup.report.comparison import pick
from selfsup.report.estimates import is_number
from selfsup.report.plots import Axis, line_figure, number_text


@page_chart("Alignment and uniformity", place=50)
def geometry_chart(runs: Compared) -> Sequence[Charted]:
    """Draw each run as a point."""
    series, rows = [], []
    for place, run in enumerate(runs.runs):
        alignment = pick(run.records, "invariance", "alignment")
        uniformity = pick(run.records, "diagnostics", "uniformity")
        if alignment is None or uniformity is None:
            continue
        point = (alignment["value"], uniformity["value"])
        if all(map(is_number, point)):
            series.append(runs.series(place, [point]))
            rows.append((runs.names[place], *map(number_text, point)))
    if not series:
        return []
    across = Axis("alignment (lower: views of an image are closer)", zero=True, least=0.1)
    up = Axis("uniformity (lower: more even)", least=0.5)
    figure, words = line_figure(series, across, up, join=False)
    return [
        Charted(
            "alignment and uniformity",
            figure,
            "Alignment is the mean squared distance of two views of one image, uniformity the logarithm of the mean "
            "Gaussian potential of all pairs, both of L2-normalised features (Wang and Isola, arXiv:2005.10242). Lower "
            "is better in both; the best features are at the lower left.",
            "Alignment and uniformity of the runs as points; the data follow",
            ("run", "alignment", "uniformity"),
            rows,
            words,
            frozenset(one.style for one in series),
        )
    ]
