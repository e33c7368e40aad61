"""The spectrum of the features."""

from __future__ import annotations

from typing import Any

from selfsup.report.drawing import BLUE, Evaluated, chart, new_figure


@chart("spectrum")
def spectrum_curve(evaluated: Evaluated) -> Any:
    """Draw the singular values in the ``diagnostics`` records over their rank, both logarithmic."""
    record = next((r for r in evaluated.of("diagnostics") if "spectrum" in r.found), None)
    if record is None:
        return None
    shown = [(rank, v) for rank, v in zip(*record["spectrum"].values(), strict=True) if v > 0]
    figure = new_figure(5.2, 3.8)
    axes = figure.add_subplot()
    if shown:
        axes.loglog(*zip(*shown, strict=True), color=BLUE, linewidth=1.6, marker=".")
    title = f"{record['data']}, RankMe {record['value']:.1f} of {record['dim']}"
    axes.set(xlabel="rank", ylabel="singular value / largest", title=title)
    axes.grid(alpha=0.3, which="both")
    return figure
