"""What the blocks of a transformer attend to."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from selfsup.report.drawing import BLUE, Evaluated, chart, new_figure


@chart("attention")
def attention_chart(evaluated: Evaluated) -> Any:
    """Draw the ``attention`` records: distance and NMI of every head, and the Fourier curves."""
    import matplotlib

    records = evaluated.of("attention")
    if not records:
        return None
    figure = new_figure(12.0, 3.7)
    panels = figure.subplots(1, 3)
    labels = {"attention_distance": "attention distance, pixels", "attention_nmi": "attention NMI"}
    for panel, (metric, label) in zip(panels, labels.items(), strict=False):
        found = sorted((r for r in records if r["metric"] == metric), key=itemgetter("depth"))
        for record in found:
            heads = record["per_head"]
            panel.scatter([record["depth"]] * len(heads), heads, s=12, color="#aaaaaa")
        panel.plot([r["depth"] for r in found], [r["value"] for r in found], marker="o", color=BLUE, label="mean")
        panel.set(xlabel="block", ylabel=label)
        panel.set_ylim(0, 1.08 * max((max(r["per_head"]) for r in found), default=1.0))
        panel.set_xticks([r["depth"] for r in found])
    curves = sorted((r for r in records if r["metric"] == "high_frequency"), key=itemgetter("depth"))
    for record in curves:
        curve = record["amplitude"]
        frequency = [step / max(1, len(curve) - 1) for step in range(len(curve))]
        colour = matplotlib.colormaps["viridis"](record["depth"] / max(1, len(curves) - 1))
        panels[2].plot(frequency, curve, color=colour, linewidth=1.4)
    panels[2].set(xlabel="frequency / highest (dark: first block)", ylabel="relative log amplitude")
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure
