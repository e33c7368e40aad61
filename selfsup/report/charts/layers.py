"""Accuracy and effective rank by layer."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from selfsup.report.drawing import BLUE, ORANGE, Evaluated, chart, new_figure


@chart("layers")
def layers_chart(evaluated: Evaluated) -> Any:
    """Draw the ``layers`` records: kNN accuracy (where there is one) and effective rank by layer."""
    records = evaluated.of("layers")
    ranks = sorted((r for r in records if r["metric"] == "rank_me"), key=itemgetter("depth"))
    accuracies = sorted((r for r in records if r["metric"] == "top1"), key=itemgetter("depth"))
    if not ranks:
        return None
    figure = new_figure(max(5.0, 0.75 * len(ranks) + 1.5), 5.6 if accuracies else 3.4)
    panels = figure.subplots(2 if accuracies else 1, 1, sharex=True, squeeze=False)[:, 0]
    if accuracies:
        values = [100 * record["value"] for record in accuracies]
        panels[0].plot([r["depth"] for r in accuracies], values, marker="o", color=BLUE)
        panels[0].set_ylabel(f"kNN accuracy, % ({accuracies[0]['split']})")
        panels[0].set_ylim(0, 100)
    panels[-1].plot([r["depth"] for r in ranks], [r["value"] for r in ranks], marker="o", color=ORANGE, label="RankMe")
    widths = [min(r["dim"], r["train_images"]) for r in ranks]
    panels[-1].plot([r["depth"] for r in ranks], widths, "--", color="#888888", label="at most")
    panels[-1].set_yscale("log")
    panels[-1].set_ylabel("effective rank")
    panels[-1].legend(frameon=False)
    panels[-1].set_xticks([r["depth"] for r in ranks], [r["layer"] for r in ranks], rotation=30, ha="right")
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure
