"""The spectrum of the features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfsup.report.compared import Charted, Compared, alone, page_chart
from selfsup.report.comparison import pick
from selfsup.report.drawing import Evaluated, chart
from selfsup.report.estimates import is_number
from selfsup.report.plots import SMALL, Axis, line_figure, number_text, plain

SHOWN = 0.98  # share of the values that the axis is made for: one that is nearly 0 would flatten all others


@page_chart("Singular values", place=52)
def spectrum_chart(runs: Compared) -> Sequence[Charted]:
    """Draw the singular values in the ``diagnostics`` records over their rank, both logarithmic."""
    series, rows = [], []
    for place, run in enumerate(runs.runs):
        record = pick(run.records, "diagnostics", "rank_me")
        held = {} if record is None else record.get("spectrum")
        ranks, values = (held.get(key) if isinstance(held, Mapping) else None for key in ("rank", "value"))
        pairs = zip(ranks, values, strict=False) if isinstance(ranks, list) and isinstance(values, list) else ()
        points = [(float(r), float(v)) for r, v in pairs if is_number(r) and is_number(v) and r > 0 and v > 0]
        if not points:
            continue
        series.append(runs.series(place, points))
        rows += [(runs.names[place], f"{rank:.0f}", number_text(value)) for rank, value in points]
    if not series:
        return []
    heights = sorted((y for one in series for _, y in one.points), reverse=True)
    floor = heights[int(SHOWN * (len(heights) - 1))] / 3
    left = sum(height < floor for height in heights)
    up = Axis("singular value / largest", log=True, within=(math.log10(floor), 1e9), least=1.0)
    figure, words = line_figure(series, Axis("rank", log=True), up)
    caption = (
        "Singular values of the training features as fractions of the largest, over their rank. A curve that drops "
        "early has few directions in use (dimensional collapse, arXiv:2110.09348)."
    )
    if left:
        caption += f" {left} of {len(heights)} values are below the end of the axis; the data have them."
    return [
        Charted(
            "singular values",
            figure,
            caption,
            f"Singular values of {len(series)} runs over their rank; the data follow",
            ("run", "rank", "value"),
            rows,
            words,
            frozenset(one.style for one in series),
        )
    ]


@chart("spectrum")
def spectrum_curve(evaluated: Evaluated) -> Any:
    """Draw the spectrum of one evaluation."""
    drawn = spectrum_chart(alone(evaluated.records))
    if not drawn:
        return None
    record = pick(evaluated.records, "diagnostics", "rank_me")
    assert record is not None
    width = f" of {record['dim']}" if "dim" in record else ""
    drawn[0].figure.axes[0].set_title(plain(f"{record['data']}, RankMe {record.value:.1f}{width}"), fontsize=SMALL)
    return drawn[0].figure
